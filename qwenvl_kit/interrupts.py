"""Keep a run's results when Ctrl-C comes after its last row, while they become a frame."""

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
    """Hold Ctrl-C back where it would cost finished results; before that, pass it on.

    Interrupts are held from the last row's result on, and from `hold` on, until the ``with`` block ends. A second one
    before `hold` is passed on, so that the caller can leave a run that does not end. Interrupts arrive in the main
    thread; in others, only the results are kept.

    Parameters
    ----------
    n_rows : int
        Rows of the run.
    control : Control, optional
        The caller's own.

    Attributes
    ----------
    control : Control
        To run with: the caller's own, which keeps each result as well.
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
            if callable(previous):  # else interrupts are ignored, or not Python's affair
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
        """Hold all interrupts from here on."""
        self._is_held = True

    def finished(self, run: Run) -> Run:
        """Return the run, marked as interrupted where an interrupt was held."""
        return replace(run, interrupted=True) if self._is_pending else run

    def rescued(self, config: Config) -> Run:
        """Return a run of the results that came before an interrupt left the executor; the others are cancelled."""
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
