"""Whether, and when, a host that failed once is asked again: a fault goes in, a pause or a refusal comes out.

What may pass (a busy server, a connection that broke off) is asked for a few times, later each time and never all at
once. It knows nothing of pictures or of how they are asked for.
"""

from __future__ import annotations

import functools
import random
import threading
import time
from typing import Any

import urllib3

from qwenvl_kit.errors import RowError

MAX_RETRIES = 3
_FIRST_PAUSE_S = 0.1
_CREDIT, _EARNED = 50.0, 0.2  # retries that a host is worth at first, and what each good answer adds
# urllib3 knows which answers may pass and reads Retry-After in both its forms; its own loop would neither try a body
# that is cut short while we read it again, nor end at a deadline:
# https://urllib3.readthedocs.io/en/stable/reference/urllib3.util.html#urllib3.util.Retry
_POLICY = urllib3.Retry(total=MAX_RETRIES, status_forcelist=(408, 425, 429, 500, 502, 503, 504))
_random = random.Random()


class Passing(RowError):
    """A fault of the stage ``fetch`` that may be gone a moment later.

    Attributes
    ----------
    wait_s : float or None
        After how many seconds the server wishes to be asked again.
    """

    wait_s: float | None = None


def passing(message: str, response: Any) -> RowError:
    """The fault that an answer other than 200 is: one that may pass, or one that stays."""
    wait_s = _wait_s(response)
    if not _POLICY.is_retry("GET", response.status, wait_s is not None):
        return RowError("fetch", message)
    fault = Passing("fetch", message)
    fault.wait_s = wait_s
    return fault


class Host:
    """What is known of one host: how long it wants to be left alone, and how many retries it is still worth.

    A host that answers nothing but errors gets about as many requests as there are pictures, not four times as many.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._credit = _CREDIT
        self._resting_until = 0.0

    def wait(self, deadline: float) -> None:
        """Wait while the host rests, at most until `deadline`."""
        with self._lock:
            until = min(self._resting_until, deadline)
        time.sleep(max(0.0, until - time.monotonic()))

    def answered(self) -> None:
        """Enter a good answer."""
        with self._lock:
            self._credit = min(_CREDIT, self._credit + _EARNED)

    def rest(self, fault: Passing, n_retries: int, deadline: float) -> bool:
        """Wait until the host may be asked again; False where it should not be."""
        now = time.monotonic()
        if n_retries >= MAX_RETRIES or now + (fault.wait_s or 0.0) >= deadline:
            return False
        if not self._grant(fault, now):
            return False
        pause_s = (fault.wait_s or 0.0) + _FIRST_PAUSE_S * 2**n_retries * _random.uniform(0.5, 1.5)
        time.sleep(max(0.0, min(pause_s, deadline - now)))
        return True

    def _grant(self, fault: Passing, now: float) -> bool:
        """Pay for a retry; a server that says when is waited for by all, which costs nothing."""
        with self._lock:
            if fault.wait_s is not None:
                self._resting_until = max(self._resting_until, now + fault.wait_s)
                return True
            if self._credit < 1:
                return False
            self._credit -= 1
            return True


@functools.lru_cache(maxsize=1024)
def host(scheme: str, name: str) -> Host:
    """The one `Host` of this process for a scheme and a name with its port."""
    return Host()


def _wait_s(response: Any) -> float | None:
    try:
        return _POLICY.get_retry_after(response)
    except urllib3.exceptions.InvalidHeader:
        return None
