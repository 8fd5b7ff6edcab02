"""Idle OpenMP threads of the caller do not take cores from a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qwenvl_kit.torch_backend import openmp

SCRIPT = """
import os, pathlib, torch
from qwenvl_kit.torch_backend.openmp import release_openmp_threads

def n_threads():
    return len(list(pathlib.Path("/proc/self/task").iterdir()))

def multiply():
    return torch.ones(512, 512) @ torch.ones(512, 512)

torch.set_num_threads(2)
before = n_threads()
multiply()
busy = n_threads()
release_openmp_threads()
idle = n_threads()
assert multiply()[0, 0] == 512
print(busy - before, idle - before, n_threads() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists a process's libraries there")
def test_idle_openmp_threads_end_and_come_back_when_needed() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["1", "0", "1"]


def test_libraries_that_are_gone_or_too_old_break_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = "7f00-7f01 r-xp 00000000 08:01 42   /nowhere/libgomp.so.1 (deleted)"
    old = "7f02-7f03 r-xp 00000000 08:01 43   /usr/lib/libgomp.so.1"
    maps = tmp_path / "maps"
    maps.write_text(f"{gone}\n{old}\n")
    asked: list[str] = []

    def load(library: str) -> object:
        asked.append(library)
        if "(deleted)" in library:
            raise OSError(library)
        return object()  # has no omp_pause_resource_all

    monkeypatch.setattr(openmp.ctypes, "CDLL", load)
    openmp.release_openmp_threads(maps)

    assert len(asked) == 2
