"""Run prompts over cells: in this process, or on the workers of Daft or Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwenvl_kit.executors.base import Executor
    from qwenvl_kit.inference.backend import Control
    from qwenvl_kit.options import Config, Engine
    from qwenvl_kit.pipeline import Run
    from qwenvl_kit.types import RowPrompt

__all__ = ["execute", "find_executor", "unload"]


def find_executor(engine: Engine) -> Executor:
    """Return the executor of an engine, imported on its first use."""
    if engine == "local":
        from qwenvl_kit.executors import local

        return local.execute
    from qwenvl_kit.executors import daft

    return daft.execute


def execute(
    cells: Sequence[object], prompts: Sequence[RowPrompt], config: Config, *, control: Control | None = None
) -> Run:
    """Answer one prompt per cell, on the executor that ``config.engine`` names.

    Examples
    --------
    >>> from qwenvl_kit import Config
    >>> execute([None], ["What?"], Config(backend="echo", progress=False)).results[0].status
    'null_image'
    """
    return find_executor(config.engine)(cells, prompts, config, control=control)


def unload() -> None:
    """Free the model that stays loaded between calls.

    Examples
    --------
    >>> import qwenvl_kit
    >>> qwenvl_kit.unload()
    """
    from qwenvl_kit.executors.model_cache import model_cache

    model_cache.clear()
