"""Threads of runs, and CPU cores for them."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable
from pathlib import Path

_this_thread = threading.local()
_MAPS = Path("/proc/self/maps")  # Linux names here the libraries that a process has loaded
_SOFT = 1  # omp_pause_soft: a later parallel region starts the threads again


def worker(work: Callable[[], None], name: str) -> threading.Thread:
    """Return a thread, not yet started, in which `inside_run` is true."""

    def marked() -> None:
        _this_thread.works = True
        work()

    return threading.Thread(target=marked, name=f"qwenvl_kit-{name}", daemon=True)


def inside_run() -> bool:
    """Whether this thread works for a run: a run started from it would wait for itself."""
    return getattr(_this_thread, "works", False)


def release_openmp_threads() -> None:
    """Release the OpenMP threads that earlier work of this thread, such as torch's, left idle.

    GNU's OpenMP counts them, and where they and a backend's own are more than the cores, it puts threads to sleep
    between any two parallel regions
    (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html); a decode step has a hundred regions, and was
    measured 1.35 times slower. They come back with this thread's next parallel region.
    """
    if not _MAPS.exists():  # not Linux, where torch brings another OpenMP
        return
    for library in {line.split(maxsplit=5)[-1] for line in _MAPS.read_text().splitlines() if "libgomp" in line}:
        with contextlib.suppress(OSError, AttributeError):  # deleted since, or older than OpenMP 5: all stays as it was
            ctypes.CDLL(library).omp_pause_resource_all(_SOFT)
