"""The CPUs that a process may use are counted, not those of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwenvl_kit import _cpu

WITH_32_CORES = """
import os, threading
os.cpu_count = lambda: 32
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import io
import pandas as pd
from PIL import Image
import qwenvl_kit

def jpeg(shade):  # large enough that all threads there are find something to do
    file = io.BytesIO()
    Image.new("L", (1500, 1500), shade).save(file, "JPEG")
    return file.getvalue()

names = set()
control = qwenvl_kit.Control(on_result=lambda _: names.update(thread.name for thread in threading.enumerate()))
pd.Series([jpeg(shade) for shade in range(40)]).vl.run(backend="echo", progress=False, control=control)
print(len([name for name in names if "load" in name]))
"""


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process be on a machine of 32 cores, and allowed to use 16 of them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 32)


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(
    ("quota", "n_cpus"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("max 100000", 16),
        ("6400000 100000", 16),
        ("5000 100000", 1),
        ("odd", 16),
    ],
)
def test_a_quota_of_the_second_kind_of_cgroups_counts(
    quota: str, n_cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(_cpu, "_CGROUP_V2", tmp_path / "cpu.max")

    assert _cpu.available_cpus() == n_cpus


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize(("quota", "n_cpus"), [("300000", 3), ("-1", 16), ("0", 1)])
def test_a_quota_of_the_first_kind_of_cgroups_counts(
    quota: str, n_cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "quota", tmp_path / "period"
    files[0].write_text(f"{quota}\n")
    files[1].write_text("100000\n")
    monkeypatch.setattr(_cpu, "_CGROUP_V2", tmp_path / "none")
    monkeypatch.setattr(_cpu, "_CGROUP_V1", files)

    assert _cpu.available_cpus() == n_cpus


@pytest.mark.usefixtures("allowed")
def test_without_a_quota_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu, "_CGROUP_V2", tmp_path / "none")
    monkeypatch.setattr(_cpu, "_CGROUP_V1", (tmp_path / "none", tmp_path / "none"))

    assert _cpu.available_cpus() == 16


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_a_process_on_one_of_32_cores_loads_with_two_threads() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITH_32_CORES], capture_output=True, text=True, timeout=120, check=True
    )

    assert int(ended.stdout) == 2
