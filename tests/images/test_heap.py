"""Memory that threads have freed goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers.needs import lacking

# Six threads at a time, so that each has a heap of its own; each frees 12 MB at the end of its heap.
_SCRIPT = """
import re, sys, threading
from pathlib import Path
import numpy as np
from qwenvl_kit.images.heap import trim_heap

def held():
    return int(re.search(r"^Anonymous:\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text(), re.M)[1]) // 1024

def work(barrier):
    np.ones(12 * 2**20, np.uint8)
    barrier.wait()
    if sys.argv[1] == "trims":
        trim_heap()

np.ones(31 * 2**20, np.uint8)  # from now on arrays of 12 MB come from heaps
before = held()
barrier = threading.Barrier(6)
threads = [threading.Thread(target=work, args=(barrier,)) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("kept", held() - before)
"""


def kept_mib(mode: str) -> int:
    """MiB that six ended threads have left behind."""
    printed = subprocess.run([sys.executable, "-c", _SCRIPT, mode], capture_output=True, text=True, check=True).stdout
    return int(printed.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's anonymous memory")
def test_what_threads_have_freed_goes_back_to_the_system() -> None:
    if kept_mib("keeps") < 20:
        lacking("this allocator gives it back by itself")
    assert kept_mib("trims") < 10
