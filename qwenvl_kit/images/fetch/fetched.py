"""The outcome of one try of a fetch: encoded bytes, or the time of the next try."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.budget import Budget, Lease

WITHOUT_LEASE = 1 << 20
"""Bytes of one file that are read before memory is leased for it."""

BODY_MEMORY = Budget(192 << 20)
"""Encoded files in memory at a time: three of the largest that the default allows, for any number of threads."""

# Longest wait for memory. 32 threads that wait for 2 decoders of 5 s an image take 80 s; nothing waits for ever.
_MAX_WAIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """Encoded bytes of an image.

    Attributes
    ----------
    data : bytes
        The whole file.
    version : str or None
        A file's time and size, or a URL's ETag or date; None where the source has none.
    lease : Lease or None
        The part of `BODY_MEMORY` that `data` takes, until this object is garbage.
    """

    data: bytes = field(repr=False)
    version: str | None = None
    lease: Lease | None = field(default=None, repr=False, compare=False)


class RetryAt(Exception):
    """Signal that a fetch must wait before its next try.

    Attributes
    ----------
    at : float
        Earliest time of the next try, of ``time.monotonic()``.
    """

    def __init__(self, at: float) -> None:
        super().__init__(f"try again in {max(0.0, at - time.monotonic()):.1f} s")
        self.at = at


def lease(n_bytes: int) -> tuple[Lease | None, float]:
    """Take the memory for a file of `n_bytes` at once, so that no two fetches wait for each other.

    Returns
    -------
    lease : Lease or None
        None for a file of at most `WITHOUT_LEASE` bytes, which is not counted.
    waited_s : float
        Seconds spent waiting, which do not count against the host.
    """
    if n_bytes <= WITHOUT_LEASE:
        return None, 0.0
    started = time.monotonic()
    try:
        held = BODY_MEMORY.take(n_bytes, timeout_s=_MAX_WAIT_S)
    except TimeoutError as error:
        raise RowError(
            "fetch",
            f"No memory was free within {_MAX_WAIT_S:.0f} s, since other fetched images still wait to be decoded. "
            "Load fewer images at a time.",
        ) from error
    return held, time.monotonic() - started
