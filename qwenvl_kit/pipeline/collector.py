"""Where results meet: each row is settled exactly once, equal rows share one answer.

Worker threads and the backend's thread write, the caller's thread only waits, so that Ctrl-C can tear nothing.
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
    """Keeps results between runs."""

    def get(self, key: str) -> Result | None:
        """The result under this key."""
        ...

    def put(self, key: str, result: Result) -> None:
        """Keep a result, durably."""
        ...

    def get_source(self, name: str) -> tuple[str, str] | None:
        """Mark and digest of the picture that stood at an address."""
        ...

    def put_source(self, name: str, version: str, digest: str) -> None:
        """Keep which picture stood at an address."""
        ...


class ResultCollector:
    """The results of one run, as they come.

    Parameters
    ----------
    n_rows : int
        Rows of the run.
    store : Store or None
        Where finished answers are kept beyond the run.
    on_result : callable or None
        Called with each settled result, in the thread that settled it.
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
        """Rows that are done."""
        return sum(self.counts.values())

    def claim(self, row: int, key: str | None) -> bool:
        """Whether this row must be asked; if not, it is settled, or will be with its duplicate."""
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
        """Settle a row whose answer is there already; False where it must be worked for."""
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
        """Enter the result of a row, and of the rows that wait for the same answer; store it before counting it."""
        with self._lock:
            key = self._key_of.pop(result.row, None)
        if keep and key is not None and self._store is not None and result.status == "ok":
            self._store.put(key, result)  # an answer that cannot be stored is not counted: it is asked again
        with self._lock:
            rows = self._waiting.pop(key, []) if key is not None else []
            if key is not None and result.status != "cancelled":
                self._answered[key] = result
            entered = [result, *(result.for_row(row, cached=result.status == "ok") for row in rows)]
            if self._closed:
                return
            for one in entered:
                self._enter(one)
        if self._on_result is not None:
            for one in entered:
                self._on_result(one)

    def fail(self, row: int, error: RowError) -> None:
        """Enter a row's fault."""
        self.add(Result.failed(row, error))

    def close(self, missing: Callable[[int], Result]) -> list[Result]:
        """All results in order; rows that have none get `missing`, and later ones are ignored."""
        with self._lock:
            self._closed = True
            for row, result in enumerate(self._results):
                if result is None:
                    self._enter(missing(row))
            finished = [result for result in self._results if result is not None]
        assert len(finished) == len(self._results), "every row comes back exactly once"
        return finished

    def _enter(self, result: Result) -> None:
        assert self._results[result.row] is None, f"row {result.row} came back twice"
        self._results[result.row] = result
        self.counts[result.status] += 1
