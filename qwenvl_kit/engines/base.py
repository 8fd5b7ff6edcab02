"""The seam between the doors and where a run happens: one function per engine, imported when it is first asked for.

An engine takes cells and prompts and gives a `Run`: the same answers in the same order wherever they were made.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from qwenvl_kit.backends.base import Control
    from qwenvl_kit.config import Config
    from qwenvl_kit.runner import Run

_REGISTRY = {
    "local": "qwenvl_kit.engines.local:execute",
    "daft": "qwenvl_kit.engines.cluster:execute",
    "ray": "qwenvl_kit.engines.cluster:execute",
}


class Engine(Protocol):
    """Answers one prompt per cell."""

    def __call__(
        self,
        cells: Sequence[object],
        prompts: Sequence[str | None],
        config: Config,
        *,
        control: Control | None = None,
        stacklevel: int | None = 2,
    ) -> Run:
        """Run to the end; options that cannot take effect are warned of at `stacklevel`."""
        ...


def execute(
    cells: Sequence[object],
    prompts: Sequence[str | None],
    config: Config,
    *,
    control: Control | None = None,
    stacklevel: int = 2,
) -> Run:
    """Run on the engine that a config names.

    Examples
    --------
    >>> from qwenvl_kit import Config
    >>> execute([None], ["What?"], Config(backend="echo", progress=False)).results[0].status
    'null_image'
    """
    module, function = _REGISTRY[config.engine].split(":")
    engine = cast("Engine", getattr(importlib.import_module(module), function))
    return engine(cells, prompts, config, control=control, stacklevel=stacklevel + 1)
