"""The seam between the doors and where a run happens: one function per engine, imported when it is first asked for.

An engine takes cells and prompts and gives a `Run`: the same answers in the same order wherever they were made.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, cast

from qwenvl_kit._warnings import warn
from qwenvl_kit.errors import StoreError, StoreWarning

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import Control
    from qwenvl_kit.options import Config
    from qwenvl_kit.pipeline import Run

_REGISTRY = {
    "local": "qwenvl_kit.executors.local:execute",
    "daft": "qwenvl_kit.executors.daft:execute",
    "ray": "qwenvl_kit.executors.daft:execute",
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
        warn_ignored: bool = True,
    ) -> Run:
        """Run to the end; warn of ignored options unless `warn_ignored` is False."""
        ...


def execute(
    cells: Sequence[object],
    prompts: Sequence[str | None],
    config: Config,
    *,
    control: Control | None = None,
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
    return engine(cells, prompts, config, control=control)


def unrecorded(run: Run, error: BaseException) -> Run:
    """Return a finished run whose record could not be stored: no error after the last row may cost the results.

    Warns of the error. Where warnings raise, and after Ctrl-C, the run that is returned says so.
    """
    if isinstance(error, KeyboardInterrupt):
        return replace(run, interrupted=True)
    if isinstance(run.failure, StoreError):  # the same disk, which is told of already
        return run
    message = f"The record of this run was not stored; its results are complete. {error}"
    try:
        warn(message, StoreWarning)
    except StoreWarning:
        failure = StoreError(message)
        failure.__cause__ = error
        return replace(run, failure=run.failure or failure)
    return run
