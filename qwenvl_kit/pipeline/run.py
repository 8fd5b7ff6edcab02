"""Run the threads of a run: the backend pulls requests and results are collected, until the end or Ctrl-C.

The caller's thread only waits and shows progress. Work is done in other threads, where Ctrl-C does not reach.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from qwenvl_kit.checkpoints.library_errors import release_frames
from qwenvl_kit.images import ImageLoader
from qwenvl_kit.inference.cancellation import Cancelled
from qwenvl_kit.pipeline.progress import StageProgress, progress_bar
from qwenvl_kit.pipeline.run_record import missing
from qwenvl_kit.pipeline.threads import worker

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.inference.backend import Backend, RunControl
    from qwenvl_kit.pipeline.collector import ResultCollector
    from qwenvl_kit.pipeline.prefetch import ImagePrefetcher
    from qwenvl_kit.types import Result

_REFRESH_S = 0.1


@dataclass(frozen=True, slots=True)
class Run:
    """The results of a run, and how it went.

    Attributes
    ----------
    results : list of Result
        One per row, in order.
    record : dict
        What was asked, what ran and how it went, as plain JSON values.
    interrupted : bool
        Ctrl-C ended it; the missing rows have status ``cancelled``.
    failure : BaseException or None
        What broke the backend; the missing rows have status ``error``.
    notes : tuple of str
        What ran otherwise than planned; part of the record.
    """

    results: list[Result]
    record: dict[str, Any]
    interrupted: bool = False
    failure: BaseException | None = None
    notes: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """The results of all rows, whether Ctrl-C ended the work, and the error that did."""

    results: list[Result]
    interrupted: bool
    failure: BaseException | None


def collect(
    work: Callable[[], None],
    collector: ResultCollector,
    cancel: threading.Event,
    *,
    progress: StageProgress | None = None,
    show_progress: bool,
) -> Outcome:
    """Run `work` in a thread and wait until it ends; an exception of it is the outcome's failure.

    Ctrl-C cancels the run and waits for `work` to end. A second Ctrl-C does not wait.
    """
    background = _Background(work, cancel)
    interrupted = False
    try:
        if background.start():
            background.wait(collector, progress or StageProgress(), show_progress=show_progress)
    except KeyboardInterrupt:
        interrupted = True
        cancel.set()
        with contextlib.suppress(KeyboardInterrupt):
            background.thread.join()
    failure = background.failure
    return Outcome(collector.close(functools.partial(missing, failure=failure)), interrupted, failure)


class _Background:
    """Work in a thread, and the error that ended it."""

    def __init__(self, work: Callable[[], None], cancel: threading.Event) -> None:
        self._work, self._cancel = work, cancel
        self._ended = threading.Event()  # Ctrl-C within Thread.join would mark a running thread as ended
        self.failure: BaseException | None = None
        self.thread = worker(self._run, "run")

    def start(self) -> bool:
        """Start the thread; False where the system gives no more threads."""
        try:
            self.thread.start()
        except RuntimeError as error:
            self._fail(error)
            return False
        return True

    def wait(self, collector: ResultCollector, progress: StageProgress, *, show_progress: bool) -> None:
        """Wait until the work has ended, and show progress."""
        with progress_bar(collector.n_rows, shown=show_progress) as tick:
            while not self._ended.wait(_REFRESH_S):
                tick(collector.n_done, collector.counts["error"], progress.text())
            tick(collector.n_done, collector.counts["error"], "")

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  # the caller's thread raises it, with the results
            self._fail(error)
        finally:
            self._ended.set()

    def _fail(self, error: BaseException) -> None:
        release_frames(error)
        self.failure = error
        self._cancel.set()


def generate(
    prefetcher: ImagePrefetcher,
    acquire: Callable[[RunControl], AbstractContextManager[Backend]],
    resolved: ResolvedConfig,
    control: RunControl,
    collector: ResultCollector,
) -> None:
    """Let the backend answer the requests of a prefetcher, until every row has a result or the run is cancelled.

    Parameters
    ----------
    prefetcher : ImagePrefetcher
        Loads images ahead, and is the backend's queue.
    acquire : callable
        Give the loaded backend for the time of the run; called once there is a request.
    resolved : ResolvedConfig
        How the backend runs.
    control : RunControl
        Cancels; set when an error ends the run.
    collector : ResultCollector
        Takes the results.

    Raises
    ------
    RuntimeError
        The backend left requests, or returned without an answer for every row.
    """
    try:
        prefetcher.start()
        if prefetcher.wait():
            with contextlib.suppress(Cancelled), acquire(control) as backend:
                for result in backend.generate(prefetcher, resolved, control):
                    collector.add(result)
            if not control.cancel.is_set() and prefetcher.get(1, block=True) is not None:
                raise RuntimeError("the backend returned before all requests were taken")
    except BaseException:
        control.cancel.set()  # for the threads that load
        raise
    finally:
        prefetcher.join()
        ImageLoader.close_idle()
    if collector.n_done < collector.n_rows and not control.cancel.is_set():
        raise RuntimeError("the backend returned without an answer for every row")
