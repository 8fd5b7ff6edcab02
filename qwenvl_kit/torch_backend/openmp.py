"""OpenMP threads of a process: how many compute, and when idle ones end."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

_MAPS = Path("/proc/self/maps")  # Linux names here the libraries that a process has loaded
_SOFT = 1  # omp_pause_soft: a later parallel region starts the threads again


@contextlib.contextmanager
def num_threads(n_threads: int | None) -> Iterator[None]:
    """Set torch's number of threads for the whole process while the context lasts; None keeps it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n_threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def release_openmp_threads(maps: Path = _MAPS) -> None:
    """End the idle OpenMP threads of this thread's earlier work, such as torch's.

    GNU's OpenMP counts them. Where they and a backend's own exceed the cores, it puts threads to sleep between any two
    parallel regions (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html). A decode step has a hundred
    regions, and was measured 1.35 times slower. The threads start again with this thread's next parallel region.
    """
    if not maps.exists():  # not Linux, where torch brings another OpenMP
        return
    for library in {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines() if "libgomp" in line}:
        with contextlib.suppress(OSError, AttributeError):  # deleted since, or older than OpenMP 5: all stays as it was
            ctypes.CDLL(library).omp_pause_resource_all(_SOFT)
