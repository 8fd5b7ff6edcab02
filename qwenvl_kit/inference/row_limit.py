"""The most sequences that run at once: fewer after memory ran out, and later slowly more again."""

from __future__ import annotations

_PATIENCE = 4  # times the limit: rows that must finish before it grows
_MAX_PATIENCE = 64
_GROWTH = 4  # it grows by a quarter


class RowLimit:
    """A limit that halves when memory runs out and grows while it suffices.

    Parameters
    ----------
    most : int
        Where it starts, and the highest it gets.

    Attributes
    ----------
    most : int
        See above.
    now : int
        The limit.

    Examples
    --------
    >>> limit = RowLimit(16)
    >>> limit.lower(8)
    >>> limit.count(32)
    >>> limit.now
    10
    """

    def __init__(self, most: int) -> None:
        self.most = self.now = most
        self._n_finished, self._patience = 0, _PATIENCE // 2

    def lower(self, now: int) -> None:
        """Lower the limit after memory ran out; each time, it takes twice as long to grow."""
        self.now, self._n_finished = max(1, now), 0
        self._patience = min(2 * self._patience, _MAX_PATIENCE)

    def lift(self) -> None:
        """Set the limit to where it started."""
        self.now, self._n_finished = self.most, 0

    def count(self, n_rows: int) -> None:
        """Count finished rows, and raise the limit once there are enough of them."""
        self._n_finished += n_rows
        while self.now < self.most and self._n_finished >= self._patience * self.now:
            self._n_finished -= self._patience * self.now
            self.now = min(self.most, self.now + max(1, self.now // _GROWTH))
