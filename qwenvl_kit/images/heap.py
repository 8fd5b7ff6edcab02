"""Give memory that was freed back to the system.

The allocator of glibc keeps what threads free for their next request, in a heap of each thread's own: beside a process
that decodes a large image, hundreds of megabytes of small ones' were seen to lie idle.
https://man7.org/linux/man-pages/man3/malloc_trim.3.html
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable


def _trim_of_glibc() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # another allocator: macOS, musl, Windows
        return None


_trim = _trim_of_glibc()


def trim_heap() -> None:
    """Give back what this process has freed; nothing happens where glibc is not its allocator."""
    if _trim is not None:
        _trim(0)
