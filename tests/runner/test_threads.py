"""Idle OpenMP threads of the caller do not take cores from a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, pathlib, torch
from qwenvl_kit.runner.threads import leave_cores

def n_threads():
    return len(list(pathlib.Path("/proc/self/task").iterdir()))

def multiply():
    return torch.ones(512, 512) @ torch.ones(512, 512)

torch.set_num_threads(2)
before = n_threads()
multiply()
busy = n_threads()
leave_cores()
idle = n_threads()
assert multiply()[0, 0] == 512
print(busy - before, idle - before, n_threads() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists a process's libraries there")
def test_idle_openmp_threads_end_and_come_back_when_needed() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["1", "0", "1"]
