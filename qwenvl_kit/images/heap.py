"""Return freed memory to the system.

glibc's allocator gives each thread a heap and keeps there what the thread frees. ``malloc_trim`` returns it, but not
the unused end of a thread's heap: that is returned once it exceeds a threshold, which grows by itself to 64 MiB. Later
threads take over the heaps, so that each of about ten kept as much, and a process grew by 300 MB over 300,000 damaged
files: https://man7.org/linux/man-pages/man3/mallopt.3.html, M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # in glibc's malloc.h
# What the thresholds grow to by themselves once a process frees an array of 32 MB. They stop growing when they are set.
_TRIM_BYTES, _MMAP_BYTES = 64 * 2**20, 32 * 2**20
_BLOCK_BYTES = 2**17  # the allocator looks at the threshold when a block of 64 KiB or more is freed
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")  # a user's own stay


def _load_glibc() -> ctypes.CDLL | None:
    try:
        glibc = ctypes.CDLL(None)
        glibc.malloc.argtypes, glibc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        glibc.free.argtypes, glibc.free.restype = [ctypes.c_void_p], None
        return glibc if glibc.malloc_trim and glibc.mallopt else None
    except (OSError, TypeError, AttributeError):  # another allocator: macOS, musl, Windows
        return None


_glibc = _load_glibc()
_thresholds = threading.Lock()


def trim_heap() -> None:
    """Return what this process has freed, except for the ends of other threads' heaps; without glibc, do nothing."""
    if _glibc is None:
        return
    if not any(name in os.environ for name in _SETTINGS):
        _trim_end_of_this_thread(_glibc)
    _glibc.malloc_trim(0)


@contextlib.contextmanager
def blocks_returned() -> Iterator[None]:
    """Keep none of the large blocks that are allocated within for reuse: each goes back as soon as it is freed."""
    if _glibc is None or any(name in os.environ for name in _SETTINGS):
        yield
        return
    _glibc.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
    _glibc.mallopt(_M_MMAP_THRESHOLD, _BLOCK_BYTES)
    try:
        yield
    finally:
        _glibc.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def _trim_end_of_this_thread(glibc: ctypes.CDLL) -> None:
    with _thresholds:
        glibc.mallopt(_M_TRIM_THRESHOLD, 0)
        glibc.free(glibc.malloc(_BLOCK_BYTES))
        glibc.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
        glibc.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
