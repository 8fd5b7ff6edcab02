"""Requests that wait for the backend: bounded in number and in bytes of pixels.

With the limit of a decoder they are most of what a run holds beside its rows, see `docs/guarantees.md`.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from qwenvl_kit._cpu import available_cpus

if TYPE_CHECKING:
    from qwenvl_kit.types import Request

MAX_BATCH_BYTES = 48 * 2**20
"""Pixels that the backend gets at a time, in bytes; one image is 37 MiB at most under a checkpoint's own limits."""

_POLL_S = 0.1  # how often a waiting thread looks whether the run was cancelled


def max_waiting_bytes(n_cpus: int) -> int:
    """Return how many bytes of pixels wait for the backend: more CPUs load more images at a time."""
    return min(128, 24 * max(2, n_cpus)) * 2**20


MAX_WAITING_BYTES = max_waiting_bytes(available_cpus())


class RequestBuffer:
    """A `RequestQueue` that threads fill and the backend empties.

    Parameters
    ----------
    cancel : threading.Event
        Ends all waiting.
    max_bytes : int
        Bytes of pixels that wait; a single request may exceed it.
    max_requests : int
        Requests that wait.
    max_batch_bytes : int
        Bytes of pixels that one `get` returns: a batch of the largest images would hold a gigabyte.
    """

    def __init__(
        self,
        cancel: threading.Event,
        *,
        max_bytes: int = MAX_WAITING_BYTES,
        max_requests: int = 512,
        max_batch_bytes: int = MAX_BATCH_BYTES,
    ) -> None:
        self._cancel = cancel
        self._max_bytes, self._max_requests, self._max_batch_bytes = max_bytes, max_requests, max_batch_bytes
        lock = threading.Lock()
        self._filled, self._emptied = threading.Condition(lock), threading.Condition(lock)
        self._requests: deque[Request] = deque()
        self._is_closed = False
        self._failure: BaseException | None = None
        self._n_large = 0
        self.n_bytes = 0

    def put(self, request: Request) -> None:
        """Add a request, once there is room for it."""
        n_bytes = _n_bytes(request)
        with self._emptied:
            while self._requests and self._is_full(n_bytes) and not self._cancel.is_set():
                self._emptied.wait(_POLL_S)
            self._requests.append(request)
            self.n_bytes += n_bytes
            self._filled.notify_all()

    def wait_for_room(self, *, is_large: bool) -> None:
        """Wait before an image is decoded, which would only be held while the backend is busy.

        For a large image, whose decoding takes most of the memory that a run may have, half of the room must be free;
        other requests wait until it is.
        """
        with self._emptied:
            self._n_large += is_large
            try:
                while self._requests and self._is_full(0) and not self._cancel.is_set():
                    self._emptied.wait(_POLL_S)
            finally:
                self._n_large -= is_large

    def close(self) -> None:
        """Say that no more requests come."""
        with self._filled:
            self._is_closed = True
            self._filled.notify_all()

    def fail(self, error: BaseException) -> None:
        """Raise an error in the thread that takes requests; the first one counts."""
        with self._filled:
            self._failure = self._failure or error
            self._filled.notify_all()

    def wait(self) -> bool:
        """Wait for the first request; False when there will be none."""
        with self._filled:
            self._wait(block=True)
            return bool(self._requests) and not self._cancel.is_set()

    def get(self, n: int, *, block: bool) -> list[Request] | None:
        """Take up to `n` requests: ``[]`` when none is ready yet, None when no more will come."""
        with self._filled:
            self._wait(block=block)
            if self._cancel.is_set() or (self._is_closed and not self._requests):
                return None
            taken = self._take(n)
            # Threads that wait for room are woken when half of it is free, not for every request that is taken.
            if 2 * len(self._requests) <= self._max_requests and 2 * self.n_bytes <= self._max_bytes:
                self._emptied.notify_all()
            return taken

    def _wait(self, *, block: bool) -> None:
        while block and not (self._requests or self._is_closed or self._failure or self._cancel.is_set()):
            self._filled.wait(_POLL_S)
        if self._failure is not None:
            raise self._failure

    def _take(self, n: int) -> list[Request]:
        taken: list[Request] = []
        n_bytes = 0
        while self._requests and len(taken) < n:
            n_bytes += _n_bytes(self._requests[0])
            if taken and n_bytes > self._max_batch_bytes:
                break
            taken.append(self._requests.popleft())
            self.n_bytes -= _n_bytes(taken[-1])
        return taken

    def _is_full(self, n_bytes: int) -> bool:
        """Return whether so many more bytes must wait."""
        most = self._max_bytes // 2 if self._n_large else self._max_bytes
        return len(self._requests) >= self._max_requests or self.n_bytes + n_bytes > most


def _n_bytes(request: Request) -> int:
    return sum(image.pixels.nbytes for image in request.images)
