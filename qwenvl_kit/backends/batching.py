"""Encoded requests in, batches of like length out, so that little is padded.

It knows lengths only; what a request asks and what becomes of a batch it does not know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwenvl_kit.backends.base import Feed
    from qwenvl_kit.backends.encode import Encoded
    from qwenvl_kit.records import Request

_WINDOW = 4  # batches' worth of requests among which neighbours of like length are sought


class Waiting:
    """Encoded requests that wait for a forward, and how many of them go into one."""

    def __init__(self, batch_size: int) -> None:
        self.rows: list[Encoded] = []
        self._batch_size = batch_size

    def top_up(self, feed: Feed) -> list[Request] | None:
        """Take what is ready; wait only when there is nothing to do. None: no more will come."""
        room = _WINDOW * self._batch_size - len(self.rows)
        if self.rows:
            return feed.take(room, block=False) if room > 0 else []
        first = feed.take(1, block=True)
        if not first:
            return first
        return first + (feed.take(room - 1, block=False) or [] if room > 1 else [])

    def next_batch(self) -> list[Encoded]:
        """The oldest row and those nearest to it in length, which waste the least padding."""
        oldest = len(self.rows[0].ids)
        nearest = sorted(range(len(self.rows)), key=lambda i: (i > 0, abs(len(self.rows[i].ids) - oldest)))
        chosen = set(nearest[: self._batch_size])
        batch = [row for i, row in enumerate(self.rows) if i in chosen]
        self.rows = [row for i, row in enumerate(self.rows) if i not in chosen]
        return batch

    def shrink_to(self, batch_size: int) -> None:
        """Memory ran out: no larger batch is tried again in this run."""
        self._batch_size = max(1, min(self._batch_size, batch_size))
