"""Keep a run's results when Ctrl-C arrives after its last row, while they become a frame."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from qwenvl_kit.checkpoints.resolve import asked_record
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.pipeline import Run
from qwenvl_kit.types import Result

if TYPE_CHECKING:
    from qwenvl_kit.options import Config


class InterruptGuard:
    """Defer Ctrl-C where it would discard finished results; before that, forward it.

    Interrupts are deferred from the last row's result on, and from `hold` on, until the ``with`` block ends. A second
    one before `hold` is forwarded, so that a hanging engine can be interrupted. Outside the main thread, which gets
    no interrupts, only the results are kept.

    Parameters
    ----------
    n_rows : int
        Number of rows of the run.
    control : Control, optional
        The caller's control.

    Attributes
    ----------
    control : Control
        The control to run with, which also keeps each result.
    """

    def __init__(self, n_rows: int, control: Control | None = None) -> None:
        control = control or Control()
        self._n_rows, self._on_result = n_rows, control.on_result
        self._results: dict[int, Result] = {}
        self._is_held = self._is_pending = False
        self._previous: Callable[[int, FrameType | None], object] | None = None
        self.control = replace(control, on_result=self._keep)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):  # else interrupts are ignored, or handled outside Python
                with contextlib.suppress(ValueError):  # a sub-interpreter
                    signal.signal(signal.SIGINT, self._handle)
                    self._previous = previous
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous is not None and signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._previous)

    def hold(self) -> None:
        """Defer all interrupts from here on."""
        self._is_held = True

    def settled(self, run: Run) -> Run:
        """Return the run, marked as interrupted where an interrupt was deferred."""
        return replace(run, interrupted=True) if self._is_pending else run

    def rescued(self, config: Config) -> Run:
        """Return a run of the results before an interrupt left the engine; other rows are cancelled."""
        kept = dict(self._results)
        results = [kept.get(row) or Result(row, "cancelled") for row in range(self._n_rows)]
        rows = dict(Counter(result.status for result in results))
        return Run(results, {"asked": asked_record(config), "rows": rows}, interrupted=True)

    def _keep(self, result: Result) -> None:
        self._results[result.row] = result
        if self._on_result is not None:
            self._on_result(result)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_done = 0 < self._n_rows <= len(self._results)
        if self._is_held or (is_done and not self._is_pending):
            self._is_pending = True
        elif self._previous is not None:
            self._previous(number, frame)
