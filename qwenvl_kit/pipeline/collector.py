"""Collect the results of a run: one per row, and one answer for equal rows.

Worker threads and the backend's thread add results. The caller's thread only waits: Ctrl-C interrupts no update.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from qwenvl_kit.types import Result

if TYPE_CHECKING:
    from qwenvl_kit.errors import RowError


class Store(Protocol):
    """Keep results between runs."""

    def get(self, key: str) -> Result | None:
        """Return the result under a key, None where there is none."""
        ...

    def put(self, key: str, result: Result) -> None:
        """Keep a result; it is committed when this returns."""
        ...

    def get_source(self, name: str) -> tuple[str, str] | None:
        """Return version and digest of the image that an address held when it was last read."""
        ...

    def put_source(self, name: str, version: str, digest: str) -> None:
        """Keep which image an address held."""
        ...


class ResultCollector:
    """The results of one run.

    Parameters
    ----------
    n_rows : int
        Rows of the run.
    store : Store or None
        Keeps finished answers beyond the run.
    on_result : callable or None
        Called with each result, in the thread that added it.
    """

    def __init__(
        self, n_rows: int, store: Store | None = None, on_result: Callable[[Result], None] | None = None
    ) -> None:
        self._results: list[Result | None] = [None] * n_rows
        self._store = store
        self._on_result = on_result
        self._lock = threading.Lock()
        self._closed = False
        self._key_of: dict[int, str] = {}  # rows whose answer others may wait for
        self._waiting: dict[str, list[int]] = {}
        self._answered: dict[str, Result] = {}
        self.counts: Counter[str] = Counter()

    @property
    def n_rows(self) -> int:
        """Rows of the run."""
        return len(self._results)

    @property
    def n_done(self) -> int:
        """Rows that have a result."""
        return sum(self.counts.values())

    def claim(self, row: int, key: str | None) -> bool:
        """Whether this row must run; if not, it has its result, or gets it with the row that it duplicates."""
        if key is None:
            return True
        stored = None
        with self._lock:
            if key in self._waiting:
                self._waiting[key].append(row)
                return False
            duplicate = self._answered.get(key)
            if duplicate is None:
                self._waiting[key] = []
                self._key_of[row] = key
        if duplicate is None and self._store is not None and (stored := self._store.get(key)) is not None:
            self.add(stored.for_row(row, cached=True), keep=False)
            return False
        if duplicate is not None:
            self.add(duplicate.for_row(row, cached=True))
        return duplicate is None

    def resolve_cached(self, row: int, key: str | None) -> bool:
        """Add the result of a row whose answer is known; False where it is not."""
        if key is None:
            return False
        with self._lock:
            known = self._answered.get(key)
        if known is None and self._store is not None:
            known = self._store.get(key)
        if known is not None:
            self.add(known.for_row(row, cached=True), keep=False)
        return known is not None

    def add(self, result: Result, *, keep: bool = True) -> None:
        """Add the result of a row and of its duplicates; it is stored before it is counted."""
        with self._lock:
            key = self._key_of.pop(result.row, None)
        if keep and key is not None and self._store is not None and result.status == "ok":
            self._store.put(key, result)  # an answer that cannot be stored is not counted, so that it runs again
        with self._lock:
            rows = self._waiting.pop(key, []) if key is not None else []
            if key is not None and result.status != "cancelled":
                self._answered[key] = result
            added = [result, *(result.for_row(row, cached=result.status == "ok") for row in rows)]
            if self._closed:
                return
            for one in added:
                self._set(one)
        if self._on_result is not None:
            for one in added:
                self._on_result(one)

    def fail(self, row: int, error: RowError) -> None:
        """Add the error of a row."""
        self.add(Result.failed(row, error))

    def close(self, missing: Callable[[int], Result]) -> list[Result]:
        """Return all results in order: `missing` for rows without one. Later results are ignored."""
        with self._lock:
            self._closed = True
            for row, result in enumerate(self._results):
                if result is None:
                    self._set(missing(row))
            finished = [result for result in self._results if result is not None]
        assert len(finished) == len(self._results), "every row comes back exactly once"
        return finished

    def _set(self, result: Result) -> None:
        assert self._results[result.row] is None, f"row {result.row} came back twice"
        self._results[result.row] = result
        self.counts[result.status] += 1
