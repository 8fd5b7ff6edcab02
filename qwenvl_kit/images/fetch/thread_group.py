"""Run blocking calls that have no timeout of their own, such as those of resolvers, on threads of their own.

A late call is left behind: its thread runs until the call returns, and its result is dropped. The number of such
threads is bounded.
"""

from __future__ import annotations

import contextvars
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")
_groups: weakref.WeakSet[ThreadGroup] = weakref.WeakSet()


class ThreadGroup:
    """A bounded number of threads, in all and per key; those that were left behind count too.

    Parameters
    ----------
    name : str
        Name of its threads.
    n_most, n_most_per_key : int
        Most threads at a time, in all and for one key.

    Examples
    --------
    >>> ThreadGroup("doc", 2).call(lambda: "done", timeout_s=5)
    'done'
    """

    def __init__(self, name: str, n_most: int, n_most_per_key: int | None = None) -> None:
        self._name, self._n_most, self._n_most_per_key = name, n_most, n_most_per_key or n_most
        self._reset()
        _groups.add(self)

    def call(self, work: Callable[[], _T], *, timeout_s: float, key: str = "") -> _T:
        """Return the result of `work`, or raise its exception.

        Raises
        ------
        TimeoutError
            It took longer than `timeout_s`, or no thread was free within it.
        """
        return self.start(work, timeout_s=timeout_s, key=key).result()

    def start(self, work: Callable[[], _T], *, timeout_s: float, key: str = "") -> Call[_T]:
        """Start `work` on the next free thread.

        Raises
        ------
        TimeoutError
            No thread was free within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        with self._freed:
            while self._n_busy >= self._n_most or self._busy[key] >= self._n_most_per_key:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"no thread was free within {timeout_s:g} s")
                self._freed.wait(left)
            self._n_busy += 1
            self._busy[key] += 1
        call = Call[_T](deadline)
        # As asyncio's to_thread does: context variables of the caller hold there too.
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._run, call, work, key), name=self._name, daemon=True)
        try:
            thread.start()
        except BaseException:  # the system may start no more threads
            self._free(key)
            raise
        return call

    def _run(self, call: Call[_T], work: Callable[[], _T], key: str) -> None:
        try:
            call._finish(work)
        finally:
            self._free(key)

    def _free(self, key: str) -> None:
        with self._freed:
            self._n_busy -= 1
            self._busy[key] -= 1
            if not self._busy[key]:
                del self._busy[key]
            self._freed.notify_all()

    def _reset(self) -> None:
        self._freed = threading.Condition()
        self._busy: Counter[str] = Counter()
        self._n_busy = 0


class Call(Generic[_T]):
    """One call under way."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._done = threading.Event()
        self._results: list[_T] = []
        self._error: BaseException | None = None

    def result(self) -> _T:
        """Return the result, at most until the call's deadline.

        Raises
        ------
        TimeoutError
            The deadline has passed.
        """
        if not self._done.wait(max(0.0, self._deadline - time.monotonic())):
            raise TimeoutError("the call did not return in time")
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _finish(self, work: Callable[[], _T]) -> None:
        try:
            self._results.append(work())
        except BaseException as error:  # noqa: BLE001  # the waiting thread raises it
            self._error = error
        finally:
            self._done.set()


def _after_fork() -> None:
    """Reset the counts of a forked child, which has none of the parent's threads."""
    for group in _groups:
        group._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
