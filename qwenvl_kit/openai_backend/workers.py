"""Threads that each take a request, ask the server and pass on the result. More start as they are needed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qwenvl_kit.errors import ConfigError, RowError
from qwenvl_kit.inference.cancellation import Cancelled
from qwenvl_kit.inference.outputs import failed
from qwenvl_kit.types import Result

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import RequestQueue
    from qwenvl_kit.openai_backend.client import Client
    from qwenvl_kit.openai_backend.in_flight import InFlight
    from qwenvl_kit.types import Request

Ask = Callable[["Request", "Client", float], Result]
_POLL_S = 0.1
_MAX_BYTES = 1 << 30  # of pixels in flight: 256 images of 12 megapixels would take 9 GB
_HANDOVER_S = 1.0  # that a cancelled queue may take to return


@dataclass(frozen=True, slots=True)
class Piece:
    """A new piece of a row's text."""

    row: int
    text: str


@dataclass(frozen=True, slots=True)
class _Ended:
    """A thread has ended, by an error or because there is no more work for it."""

    error: BaseException | None = None


@dataclass(slots=True, eq=False)
class _Taken:
    """A request that a thread has taken; `is_asked` until the thread has its result."""

    request: Request
    client: Client
    n_bytes: int
    started: float
    deadline: float
    is_asked: bool = True


class Workers:
    """The threads of one run.

    Parameters
    ----------
    requests : RequestQueue
        Gives requests; one thread at a time waits for it.
    ask : callable
        Return the result of a request, on a connection, before a deadline.
    open_client : callable
        Return a new connection.
    in_flight : InFlight
        How many threads there are.
    timeout_s : float
        Maximum seconds of a row.
    """

    def __init__(
        self,
        requests: RequestQueue,
        ask: Ask,
        open_client: Callable[[], Client],
        in_flight: InFlight,
        timeout_s: float,
    ) -> None:
        self._requests, self._ask, self._open_client = requests, ask, open_client
        self._in_flight, self._timeout_s = in_flight, timeout_s
        self.events: queue.SimpleQueue[Piece | Result | _Ended] = queue.SimpleQueue()
        self._taking = threading.Lock()
        self._changed = threading.Condition()
        self._taken: dict[int, _Taken] = {}
        self._n_bytes = self._n_threads = self._n_started = self._n_idle = 0
        self._is_over = False

    def results(self, cancel: threading.Event, on_piece: Callable[[int, str], None] | None) -> Iterator[Result]:
        """Give results as they come, until all requests are answered or the run is cancelled.

        Once `cancel` is set, requests that are taken and not answered become ``cancelled``.
        """
        self._start_thread(is_first=True)
        n_ended = 0
        try:
            while not cancel.is_set():
                self._abort_late()
                try:
                    event = self.events.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                if isinstance(event, Result):
                    yield self._finished(event)
                elif isinstance(event, Piece):
                    if on_piece is not None:
                        on_piece(event.row, event.text)
                elif event.error is not None:
                    raise event.error
                else:
                    n_ended += 1
                    if n_ended == self._n_started:
                        return
            yield from self._cancelled()
        finally:
            self._stop()

    # ------------------------------------------------------------------ the thread of the run

    def _finished(self, result: Result) -> Result:
        with self._changed:
            del self._taken[result.row]
        if result.status == "ok":
            self._in_flight.count_row()
        return result

    def _abort_late(self) -> None:
        now = time.monotonic()
        with self._changed:
            for one in self._taken.values():
                if one.is_asked and now > one.deadline:
                    one.client.abort()

    def _cancelled(self) -> Iterator[Result]:
        self._stop()
        if self._taking.acquire(timeout=_HANDOVER_S):  # a thread that took a request has registered it by now
            self._taking.release()
        while not self.events.empty():
            event = self.events.get()
            if isinstance(event, Result):
                yield self._finished(event)
        with self._changed:
            rows = list(self._taken)
        yield from (Result(row, "cancelled") for row in rows)

    def _stop(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
            for one in self._taken.values():
                one.client.abort()

    # ------------------------------------------------------------------ the others

    def _start_thread(self, *, is_first: bool = False) -> None:
        """Start one more thread, unless one waits for requests already, or there are enough."""
        with self._changed:
            if self._is_over or (not is_first and (self._n_idle or self._n_threads >= self._in_flight.limit)):
                return
            self._n_threads += 1
            self._n_started += 1
        try:
            threading.Thread(target=self._work, name="qwenvl_kit-ask", daemon=True).start()
        except RuntimeError:  # the system starts no more
            with self._changed:
                self._n_threads -= 1
                self._n_started -= 1
            if is_first:
                raise

    def _work(self) -> None:
        error, client = None, self._open_client()
        try:
            while (taken := self._take(client)) is not None:
                self._start_thread()
                result = self._answer(taken)
                self._release(taken)
                self.events.put(result)
                del taken, result
                if client.is_aborted:
                    client.close()
                    client = self._open_client()
        except BaseException as caught:  # noqa: BLE001  # the thread of the run raises it
            error = caught
        finally:
            client.close()
            self.events.put(_Ended(error))

    def _take(self, client: Client) -> _Taken | None:
        """Wait for a request; None where there is no more work for this thread."""
        with self._changed:
            self._n_idle += 1
        try:
            with self._taking:
                return self._take_next(client) if self._wait_for_room() else None
        finally:
            with self._changed:
                self._n_idle -= 1

    def _wait_for_room(self) -> bool:
        """Wait until pixels in flight leave room for a request; False where this thread is one too many."""
        with self._changed:
            self._changed.wait_for(lambda: self._n_bytes < _MAX_BYTES or self._is_over)
            if self._n_threads > self._in_flight.limit:
                self._n_threads -= 1
                return False
            return not self._is_over

    def _take_next(self, client: Client) -> _Taken | None:
        while (requests := self._requests.get(1, block=True)) == []:
            pass
        if requests is None:
            return None
        (request,) = requests
        now = time.monotonic()
        n_bytes = sum(image.pixels.nbytes for image in request.images)
        taken = _Taken(request, client, n_bytes, now, now + self._timeout_s)
        with self._changed:
            self._taken[request.row] = taken
            self._n_bytes += n_bytes
            if self._is_over:
                client.abort()
        return taken

    def _answer(self, taken: _Taken) -> Result:
        try:
            result = self._ask(taken.request, taken.client, taken.deadline)
        except Cancelled:
            return Result(taken.request.row, "cancelled")
        except ConfigError as error:  # such as a key that is not one, which the caller corrects
            return failed(taken.request, RowError("generate", str(error)), "")
        except Exception as error:  # noqa: BLE001  # whatever one row's request or answer causes is its own
            if self._is_over:  # its connection was closed
                return Result(taken.request.row, "cancelled")
            return failed(taken.request, error, "asking the server")
        with self._changed:
            n_asked = sum(one.is_asked for one in self._taken.values())
        return replace(result, seconds=(time.monotonic() - taken.started) / max(1, n_asked))

    def _release(self, taken: _Taken) -> None:
        with self._changed:
            taken.is_asked = False
            self._n_bytes -= taken.n_bytes
            self._changed.notify_all()
