"""Queue work by host, so that a slow or resting host delays no other.

The next item comes from the host with the fewest items under way, which shares the threads fairly between hosts in any
order of rows. The caller holds a lock.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Host(Generic[T]):
    items: deque[T] = field(default_factory=deque)
    n_under_way: int = 0
    resting_until: float = 0.0


class HostQueues(Generic[T]):
    """Items in a queue for each host.

    Parameters
    ----------
    max_per_host : int
        Most items of one host under way at a time.

    Examples
    --------
    >>> queues = HostQueues(max_per_host=2)
    >>> for host, item in [("slow", 1), ("slow", 2), ("slow", 3), ("fast", 4)]:
    ...     queues.put(host, item)
    >>> [queues.take(now=0.0) for _ in range(4)]
    [('slow', 1), ('fast', 4), ('slow', 2), None]
    >>> queues.done("slow")
    >>> queues.take(now=0.0)
    ('slow', 3)
    """

    def __init__(self, max_per_host: int) -> None:
        self._hosts: dict[str, _Host[T]] = {}
        # Names of hosts that have an item to take, by how many are under way; in turn within each.
        self._ready: list[OrderedDict[str, None]] = [OrderedDict() for _ in range(max_per_host)]
        self._resting: list[tuple[float, str]] = []  # a heap

    def put(self, host: str, item: T, *, first: bool = False, not_before: float = 0.0) -> None:
        """Queue an item, at the front if `first`; `not_before` makes its whole host rest until then."""
        entry = self._hosts.setdefault(host, _Host())
        (entry.items.appendleft if first else entry.items.append)(item)
        if not_before > entry.resting_until:
            self._unlist(host, entry)
            entry.resting_until = not_before
            heapq.heappush(self._resting, (not_before, host))
        elif not entry.resting_until:
            self._list(host, entry)

    def take(self, now: float) -> tuple[str, T] | None:
        """Take the next item with its host; None while every host that has one rests or has enough under way."""
        self._wake(now)
        for names in self._ready:
            if names:
                host = next(iter(names))
                entry = self._hosts[host]
                self._unlist(host, entry)
                item = entry.items.popleft()
                entry.n_under_way += 1
                self._list(host, entry)
                return host, item
        return None

    def done(self, host: str) -> None:
        """Release the place of an item that was taken."""
        entry = self._hosts[host]
        self._unlist(host, entry)
        entry.n_under_way -= 1
        if not (entry.items or entry.n_under_way or entry.resting_until):
            del self._hosts[host]
        elif not entry.resting_until:
            self._list(host, entry)

    def next_due(self) -> float | None:
        """Return when the first resting host may be tried again; None where none rests."""
        return self._resting[0][0] if self._resting else None

    def _wake(self, now: float) -> None:
        while self._resting and self._resting[0][0] <= now:
            until, host = heapq.heappop(self._resting)
            entry = self._hosts.get(host)
            if entry is not None and entry.resting_until == until:  # else it rests longer since
                entry.resting_until = 0.0
                self._list(host, entry)

    def _list(self, host: str, entry: _Host[T]) -> None:
        if entry.items and entry.n_under_way < len(self._ready):
            self._ready[entry.n_under_way].setdefault(host)

    def _unlist(self, host: str, entry: _Host[T]) -> None:
        if entry.n_under_way < len(self._ready):
            self._ready[entry.n_under_way].pop(host, None)
