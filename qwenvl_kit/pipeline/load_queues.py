"""Queue the groups of a run for the threads that load their images.

Where a group waits decides which threads have it: those that fetch (queued by host), those that read local files and
pixels, or those that wait for a decoder's process.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qwenvl_kit.images import host_of
from qwenvl_kit.images.fetch.limits import MAX_PER_HOST
from qwenvl_kit.pipeline.host_queues import HostQueues

if TYPE_CHECKING:
    from qwenvl_kit.images import Fetch, Fetched
    from qwenvl_kit.pipeline.plan import Group, PromptRef
    from qwenvl_kit.types import ImageSource, LoadedImage

_MAX_SLOW_BYTES = 128 * 2**20  # encoded bytes that wait for a decoder's process
_POLL_S = 0.1  # how often a thread that waits for room looks whether the run was cancelled
_IDLE_S = 0.25  # how often a thread without work does


@dataclass(slots=True, eq=False)
class Task:
    """A group whose images are being loaded.

    Attributes
    ----------
    prompts : sequence of PromptRef or None
        Those that no earlier run answered; None before that was looked up.
    images : list of LoadedImage
        In the order of the group's sources.
    fetch, fetched
        Of the next source: the fetch under way, and its bytes, which wait for a decoder.
    """

    group: Group
    prompts: Sequence[PromptRef] | None = None
    images: list[LoadedImage] = field(default_factory=list)
    fetch: Fetch | None = None
    fetched: Fetched | None = None

    def next_source(self) -> ImageSource:
        """Return the source whose image comes next."""
        return self.group.sources[len(self.images)]

    def held_bytes(self) -> int:
        """Return the bytes that are held beside the caller's own cell."""
        if self.fetched is None or self.next_source().kind == "bytes":
            return 0
        return len(self.fetched.data)


@dataclass(slots=True)
class Place:
    """What a thread may do: fetch from one host, or wait for a decoder's process."""

    host: str | None = None
    is_slow: bool = False


class LoadQueues:
    """Tasks that wait for a thread.

    Parameters
    ----------
    groups : sequence of Group
        All groups of the run.
    cancel : threading.Event
        Ends all waiting.
    """

    def __init__(self, groups: Sequence[Group], cancel: threading.Event) -> None:
        self._cancel = cancel
        self._is_stopped = False
        self._n_open = len(groups)
        lock = threading.Lock()
        self._to_fetch, self._to_load = threading.Condition(lock), threading.Condition(lock)
        self._to_decode, self._room = threading.Condition(lock), threading.Condition(lock)
        local = [group for group in groups if not group.is_remote()]
        self._local: Iterator[Group] = iter(local)
        self._hosts: HostQueues[Group | Task] = HostQueues(MAX_PER_HOST)
        for group in groups:
            if group.is_remote():
                self._hosts.put(_first_host(group.sources), group)
        self._resumed: deque[Task] = deque()  # whose shared image has come
        self._slow: deque[Task] = deque()
        self._slow_bytes = 0
        self.n_local, self.n_remote = len(local), len(groups) - len(local)

    def next_local(self) -> tuple[Task, Place] | None:
        """Wait for a task that needs no host; None when all are done."""
        with self._to_load:
            while not self.is_over():
                if self._resumed:
                    return self._resumed.popleft(), Place()
                if (group := next(self._local, None)) is not None:
                    return Task(group), Place()
                self._to_load.wait(_IDLE_S)
            return None

    def next_remote(self) -> tuple[Task, Place] | None:
        """Wait for a task of a host that is not busy or resting; None when all are done."""
        with self._to_fetch:
            while not self.is_over():
                if self._resumed:
                    return self._resumed.popleft(), Place()
                now = time.monotonic()
                if (taken := self._hosts.take(now)) is not None:
                    host, work = taken
                    return work if isinstance(work, Task) else Task(work), Place(host)
                due = self._hosts.next_due()
                self._to_fetch.wait(_IDLE_S if due is None else min(_IDLE_S, max(0.0, due - now)))
            return None

    def next_slow(self) -> tuple[Task, Place] | None:
        """Wait for a task whose image takes a decoder's process; None when all are done."""
        with self._to_decode:
            while not self.is_over():
                if self._slow:
                    task = self._slow.popleft()
                    self._slow_bytes -= task.held_bytes()
                    self._room.notify_all()
                    return task, Place(is_slow=True)
                self._to_decode.wait(_IDLE_S)
            return None

    def put_for_host(self, host: str, task: Task, *, not_before: float = 0.0) -> None:
        """Queue a task first for a host; `not_before` makes the host rest until then."""
        with self._to_fetch:
            self._hosts.put(host, task, first=True, not_before=not_before)
            self._to_fetch.notify()

    def put_slow(self, task: Task) -> None:
        """Queue a task for the threads that wait for decoders' processes, once there is room for its bytes."""
        with self._room:
            while self._slow_bytes >= _MAX_SLOW_BYTES and not self.is_over():
                self._room.wait(_POLL_S)
            self._slow.append(task)
            self._slow_bytes += task.held_bytes()
            self._to_decode.notify()

    def resume(self, tasks: Sequence[Task]) -> None:
        """Queue tasks whose shared image has come."""
        with self._to_load:
            self._resumed.extend(tasks)
            self._to_load.notify_all()
            self._to_fetch.notify_all()

    def leave_host(self, place: Place) -> None:
        """Let another thread have the place's host."""
        if place.host is not None:
            with self._to_fetch:
                self._hosts.done(place.host)
                self._to_fetch.notify()
            place.host = None

    def finish_one(self) -> bool:
        """Count a group as done; True when it was the last."""
        with self._to_load:
            self._n_open -= 1
            if not self._n_open:
                self._notify_all()
            return not self._n_open

    def stop(self) -> None:
        """End all waiting."""
        with self._to_load:
            self._is_stopped = True
            self._notify_all()

    def is_over(self) -> bool:
        """Whether the run was cancelled or stopped, or all groups are done."""
        return self._cancel.is_set() or self._is_stopped or not self._n_open

    def _notify_all(self) -> None:
        for condition in (self._to_fetch, self._to_load, self._to_decode, self._room):
            condition.notify_all()


def _first_host(sources: Sequence[ImageSource]) -> str:
    return next(host for source in sources if (host := host_of(source)) is not None)
