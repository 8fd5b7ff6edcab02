"""The protocol of executors, and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from qwenvl_kit._warnings import warn
from qwenvl_kit.errors import BackendBusy, StoreError, StoreWarning
from qwenvl_kit.pipeline import inside_run

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import Control
    from qwenvl_kit.options import Config
    from qwenvl_kit.pipeline import Run
    from qwenvl_kit.types import RowPrompt


class Executor(Protocol):
    """Answer one prompt per cell: the same results in the same order, wherever they are made."""

    def __call__(
        self,
        cells: Sequence[object],
        prompts: Sequence[RowPrompt],
        config: Config,
        *,
        control: Control | None = None,
    ) -> Run:
        """Run to the end, and warn of ignored options."""
        ...


def refuse_nested_run() -> None:
    """Raise `BackendBusy` in a thread that works for a run."""
    if inside_run():
        raise BackendBusy(
            "A callback of a run started another run, which would wait for the first one forever. Start it after the "
            "first has returned, or from a thread of your own."
        )


def without_record(run: Run, error: BaseException) -> Run:
    """Return a finished run whose record could not be stored: no error after the last row may cost the results.

    Warns of the error. Where warnings raise, and after Ctrl-C, the run that is returned says so.
    """
    if isinstance(error, KeyboardInterrupt):
        return replace(run, interrupted=True)
    if isinstance(run.failure, StoreError):  # the same disk, which the run reports already
        return run
    message = f"The record of this run was not stored; its results are complete. {error}"
    try:
        warn(message, StoreWarning)
    except StoreWarning:
        failure = StoreError(message)
        failure.__cause__ = error
        return replace(run, failure=run.failure or failure)
    return run
