"""Encoded requests in, batches of like length out, so that little is padded.

It knows lengths only; what a request asks and what becomes of a batch it does not know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import RequestQueue
    from qwenvl_kit.inference.processor import Encoded
    from qwenvl_kit.types import Request

_WINDOW = 4  # batches' worth of requests among which neighbours of like length are sought


class WaitingQueue:
    """Encoded requests that wait for a forward, and how many of them go into one."""

    def __init__(self, batch_size: int) -> None:
        self.rows: list[Encoded] = []
        self._batch_size = batch_size

    def fill_from(self, queue: RequestQueue, *, block: bool = True) -> list[Request] | None:
        """Take what is ready; wait, if `block`, only when there is nothing to do. None: no more will come."""
        room = _WINDOW * self._batch_size - len(self.rows)
        if self.rows or not block:
            return queue.get(room, block=False) if room > 0 else []
        first = queue.get(1, block=True)
        if not first:
            return first
        return first + (queue.get(room - 1, block=False) or [] if room > 1 else [])

    def next_batch(self, n_most: int | None = None) -> list[Encoded]:
        """The oldest row, those that see the same pictures, and those nearest in length, which waste least padding."""
        n_most = self._batch_size if n_most is None else min(n_most, self._batch_size)
        oldest = self.rows[0]
        ranks = {
            oldest.image_keys: (-1, 0)
        }  # of those that see the same: by the length and the place of their first row
        for i, row in enumerate(self.rows):
            ranks.setdefault(row.image_keys, (abs(len(row.ids) - len(oldest.ids)), i))
        nearest = sorted(range(len(self.rows)), key=lambda i: (ranks[self.rows[i].image_keys], i))
        chosen = set(nearest[:n_most])
        batch = [row for i, row in enumerate(self.rows) if i in chosen]
        self.rows = [row for i, row in enumerate(self.rows) if i not in chosen]
        return batch

    def put_back(self, rows: list[Encoded]) -> None:
        """Let rows that were taken wait again, before all others."""
        self.rows[:0] = rows

    def shrink_to(self, batch_size: int) -> None:
        """Memory ran out: no larger batch is tried again in this run."""
        self._batch_size = max(1, min(self._batch_size, batch_size))
