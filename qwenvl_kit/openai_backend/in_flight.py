"""How many requests are in flight: a number, or as many as raise throughput."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwenvl_kit.options import RowsInFlight

_FIRST, _MOST = 8, 256
_GAIN = 1.1


class InFlight:
    """The number of requests in flight.

    ``"auto"`` starts at 8 and doubles, up to 256, while each doubling makes rows finish a tenth faster or more. The
    first doubling that does not is undone, and the number stays. The pace of a number is that of twice as many rows,
    after as many again have finished.

    Parameters
    ----------
    asked : int or "auto"
        The option.
    clock : callable
        Return seconds.

    Attributes
    ----------
    limit : int
        Requests in flight, at most.
    is_settled : bool
        It does not change any more.

    Examples
    --------
    >>> in_flight = InFlight("auto")
    >>> in_flight.limit, in_flight.is_settled
    (8, False)
    """

    def __init__(self, asked: RowsInFlight, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = _FIRST if asked == "auto" else asked
        self.is_settled = asked != "auto"
        self._clock = clock
        self._best = 0.0
        self._n_rows, self._since = 0, 0.0

    def count_row(self) -> None:
        """Count a finished row; for one thread."""
        if self.is_settled:
            return
        self._n_rows += 1
        if self._n_rows == self.limit:  # those begun under the former number are out of the way
            self._since = self._clock()
        if self._n_rows < 3 * self.limit:
            return
        pace = 2 * self.limit / max(1e-9, self._clock() - self._since)
        if pace < _GAIN * self._best:
            self.limit //= 2
            self.is_settled = True
        elif self.limit >= _MOST:
            self.is_settled = True
        else:
            self.limit *= 2
        self._best, self._n_rows = pace, 0
