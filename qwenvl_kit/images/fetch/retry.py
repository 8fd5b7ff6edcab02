"""Decide when a failed request is tried again.

Transient faults (a busy server, a broken connection) are retried a few times, with a growing and random backoff. No
function here sleeps: callers get the time of the next try.
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
from qwenvl_kit.images.fetch.fetched import RetryAt

MAX_RETRIES = 3
RETRY_BUDGET = 50.0
"""Retries granted to a new host."""

_REFUND = 0.2  # of a retry, for each successful response
_FIRST_BACKOFF_S = 0.1
_MAX_WAIT_S = 86_400.0
# urllib3 has the transient status codes and parses Retry-After in both its forms; its own loop would neither
# retry a body that is cut short while we read it, nor end at a deadline:
# https://urllib3.readthedocs.io/en/stable/reference/urllib3.util.html#urllib3.util.Retry
_POLICY = urllib3.Retry(total=MAX_RETRIES, status_forcelist=(408, 425, 429, 500, 502, 503, 504))
_random = random.Random()


class TransientError(RowError):
    """A fault of the stage ``fetch`` that a later try may not meet.

    Attributes
    ----------
    wait_s : float or None
        Seconds of the server's Retry-After header.
    """

    wait_s: float | None = None


def broken_connection() -> TransientError:
    """Return the error of a response that ended too early."""
    return TransientError("fetch", "Cannot read the image: the connection broke off.")


def status_error(message: str, response: Any) -> RowError:
    """Return the error of a response without success, transient or permanent."""
    wait_s = retry_after_s(response)
    if not _POLICY.is_retry("GET", response.status, wait_s is not None):
        return RowError("fetch", message)
    fault = TransientError("fetch", message)
    fault.wait_s = wait_s
    return fault


class HostRetryState:
    """The backoff and the retry budget of one host.

    A host that returns nothing but errors gets about as many requests as there are images, not four times as many.
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
        """Refund a part of a retry."""
        with self._lock:
            self._budget = min(RETRY_BUDGET, self._budget + _REFUND)

    def retry_at(self, fault: TransientError, n_retries: int, deadline: float) -> float | None:
        """Return the time of the next try, None where there is none."""
        now = time.monotonic()
        wait_s = fault.wait_s or 0.0
        backoff_s: float = wait_s + _FIRST_BACKOFF_S * 2**n_retries * _random.uniform(0.5, 1.5)
        if n_retries >= MAX_RETRIES or now + backoff_s >= deadline or not self._spend(wait_s, now):
            return None
        return now + backoff_s

    def retry_or_fail(self, fault: TransientError, n_retries: int, deadline: float) -> RetryAt | RowError:
        """Return the signal for the next try, or the final error where there is none."""
        at = self.retry_at(fault, n_retries, deadline)
        if at is not None:
            return RetryAt(at)
        attempts = f" Gave up after {n_retries + 1} attempts." if n_retries else ""
        return RowError("fetch", f"{fault.message}{attempts}")

    def _spend(self, wait_s: float, now: float) -> bool:
        """Pay for a retry; a Retry-After holds for all requests to the host, and is free."""
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


def retry_after_s(response: Any) -> float | None:
    """Return the seconds of a response's Retry-After header, at most a day; None without a readable one."""
    try:
        wait_s = _POLICY.get_retry_after(response)
        return None if wait_s is None else min(float(wait_s), _MAX_WAIT_S)
    except Exception:  # noqa: BLE001  # years and zones beyond C's int, numbers of thousands of digits, no date at all
        return None


def _after_fork() -> None:
    """Begin anew in a forked child: the parent's threads may have held locks, and its random numbers repeat."""
    host_retry_state.cache_clear()
    _random.seed()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
