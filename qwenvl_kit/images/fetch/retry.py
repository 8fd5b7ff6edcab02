"""When a host that failed once is asked again: a pause, or no further try.

What may pass (a busy server, a connection that broke off) is asked for a few times, later each time and never all at
once. Nothing here waits: callers get the time from which to try again.
"""

from __future__ import annotations

import functools
import os
import random
import threading
import time
from typing import Any

import urllib3

from qwenvl_kit.errors import RowError

MAX_RETRIES = 3
_FIRST_PAUSE_S = 0.1
RETRY_BUDGET, _REFUND = 50.0, 0.2  # retries that a host is worth at first, and what each good answer adds
_LONGEST_WAIT_S = 86_400.0
# urllib3 knows which answers may pass and reads Retry-After in both its forms; its own loop would neither try a body
# that is cut short while we read it again, nor end at a deadline:
# https://urllib3.readthedocs.io/en/stable/reference/urllib3.util.html#urllib3.util.Retry
_POLICY = urllib3.Retry(total=MAX_RETRIES, status_forcelist=(408, 425, 429, 500, 502, 503, 504))
_random = random.Random()


class TransientError(RowError):
    """A fault of the stage ``fetch`` that may be gone a moment later.

    Attributes
    ----------
    wait_s : float or None
        After how many seconds the server allows the next request.
    """

    wait_s: float | None = None


def status_error(message: str, response: Any) -> RowError:
    """Return the fault for an answer without success: one that may pass, or one that stays."""
    wait_s = _wait_s(response)
    if not _POLICY.is_retry("GET", response.status, wait_s is not None):
        return RowError("fetch", message)
    fault = TransientError("fetch", message)
    fault.wait_s = wait_s
    return fault


class HostRetryState:
    """The state of one host: until when it rests, and how many retries it is still worth.

    A host that answers nothing but errors gets about as many requests as there are pictures, not four times as many.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._budget = RETRY_BUDGET
        self._backoff_until = 0.0

    @property
    def backoff_until(self) -> float:
        """Time of ``time.monotonic()`` before which no request is sent."""
        return self._backoff_until

    def record_success(self) -> None:
        """Record a good answer."""
        with self._lock:
            self._budget = min(RETRY_BUDGET, self._budget + _REFUND)

    def retry_at(self, fault: TransientError, n_retries: int, deadline: float) -> float | None:
        """Return the time from which on to try again, or None where there is no further try."""
        now = time.monotonic()
        wait_s = fault.wait_s or 0.0
        pause_s: float = wait_s + _FIRST_PAUSE_S * 2**n_retries * _random.uniform(0.5, 1.5)
        if n_retries >= MAX_RETRIES or now + pause_s >= deadline or not self._grant(wait_s, now):
            return None
        return now + pause_s

    def _grant(self, wait_s: float, now: float) -> bool:
        """Pay for a retry; a pause that the server named holds for all, and costs nothing."""
        with self._lock:
            if wait_s > 0:
                self._backoff_until = max(self._backoff_until, now + wait_s)
                return True
            if self._budget < 1:
                return False
            self._budget -= 1
            return True


@functools.lru_cache(maxsize=1024)
def host_retry_state(key: str) -> HostRetryState:
    """Return the one `HostRetryState` of this process for a key such as ``https://example.org:443``."""
    return HostRetryState()


def _wait_s(response: Any) -> float | None:
    try:
        wait_s = _POLICY.get_retry_after(response)
        return None if wait_s is None else min(float(wait_s), _LONGEST_WAIT_S)
    except Exception:  # noqa: BLE001  # years and zones beyond C's int, numbers of thousands of digits, no date at all
        return None


def _after_fork() -> None:
    """Begin anew in a forked child: the parent's threads may have held locks, and its random numbers repeat."""
    host_retry_state.cache_clear()
    _random.seed()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
