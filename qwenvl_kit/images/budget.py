"""A budget that threads share: a weighted semaphore with timeouts, in first-come order."""

from __future__ import annotations

import os
import threading
import time
import weakref

_budgets: weakref.WeakSet[Budget] = weakref.WeakSet()


class Budget:
    """A weighted semaphore.

    Parameters
    ----------
    capacity : int
        Most units taken at a time. A request for more takes all of them, and is thus served alone.

    Examples
    --------
    >>> budget = Budget(100)
    >>> with budget.take(60):
    ...     budget.available
    40
    >>> budget.available
    100
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._reset()
        _budgets.add(self)

    @property
    def available(self) -> int:
        """Units that are free."""
        return self._available

    def take(self, units: int, *, timeout_s: float | None = None) -> Lease:
        """Wait until `units` are free, and take them.

        Requests are served in order, so that small ones do not starve a large one.

        Raises
        ------
        TimeoutError
            They were not free within `timeout_s`.
        """
        units = min(max(units, 0), self._capacity)
        with self._changed:
            if not self._queue and units <= self._available:
                self._available -= units
                return Lease(self, units)
            deadline = None if timeout_s is None else time.monotonic() + timeout_s
            ticket = object()
            self._queue.append(ticket)
            try:
                while self._queue[0] is not ticket or units > self._available:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise TimeoutError(f"{units} units were not free within {timeout_s:g} s")
                    self._changed.wait(left)
                self._available -= units
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        return Lease(self, units)

    def _give_back(self, units: int) -> None:
        with self._changed:
            self._available += units
            if self._queue:
                self._changed.notify_all()

    def _reset(self) -> None:
        # Re-entrant: the garbage collector may end a lease while its own thread holds the lock.
        self._changed = threading.Condition(threading.RLock())
        self._queue: list[object] = []
        self._available = self._capacity


class Lease:
    """Units of a `Budget`, held until `release`, the end of a ``with`` block, or garbage collection."""

    def __init__(self, budget: Budget, units: int) -> None:
        self._budget, self._units = budget, units
        self._process = os.getpid()

    def release(self) -> None:
        """Return the units; a second call does nothing."""
        units, self._units = self._units, 0
        if units and self._process == os.getpid():  # a forked child's budgets are whole again
            self._budget._give_back(units)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def _after_fork() -> None:
    """Reset the budgets of a forked child, which has none of the threads that held units and locks."""
    for budget in _budgets:
        budget._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
