"""Decide when a row is asked again, for all rows of a server together."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

from qwenvl_kit.errors import RowError

if TYPE_CHECKING:
    from qwenvl_kit.openai_backend.faults import Transient
    from qwenvl_kit.openai_backend.server import Server

_FIRST_S, _MAX_S = 0.1, 2.0
_random = random.Random()


class Patience:
    """When a server may be asked again.

    A Retry-After holds for all rows. A server that has not been reached for as long as one row may take gets one try of
    each further row, so that a run without a server ends.

    Parameters
    ----------
    server : Server
        Its timeout is that of one row.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._reached_at = time.monotonic()

    @property
    def not_before(self) -> float:
        """Time of ``time.monotonic`` before which nothing is sent."""
        return self._not_before

    def record_reached(self) -> None:
        """Note that the server answered."""
        self._reached_at = time.monotonic()

    def next_try(self, fault: Transient, n_tries: int, deadline: float) -> float:
        """Return the time of the next try.

        Parameters
        ----------
        fault : Transient
            What the last try met.
        n_tries : int
            Tries so far that met faults of its kind.
        deadline : float
            Of the row.

        Raises
        ------
        RowError
            There is none.
        """
        now = time.monotonic()
        backoff_s: float = min(_MAX_S, _FIRST_S * 2 ** min(n_tries, 10)) * _random.uniform(0.5, 1.5)
        at = now + fault.wait_s + backoff_s
        if fault.wait_s:
            with self._lock:
                self._not_before = max(self._not_before, now + fault.wait_s)
        if fault.max_tries is not None and n_tries >= fault.max_tries:
            raise RowError("generate", f"{fault.message} Gave up after {n_tries} tries.")
        if fault.wait_s and at >= deadline:
            raise RowError(
                "generate",
                f"{fault.message} It allows the next request in {fault.wait_s:.0f} s (Retry-After), beyond "
                f"request_timeout_s={self._server.timeout_s:g}. Raise it, or try again later.",
            )
        is_lost = fault.is_unreachable and now - self._reached_at >= self._server.timeout_s
        if is_lost or at >= deadline:
            raise RowError(
                "generate", f"{fault.message} Gave up after request_timeout_s={self._server.timeout_s:g} s of tries."
            )
        return at
