"""The memory that a process may use is measured, not that of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenvl_kit import _memory

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 20 GiB to spare."""
    write(tmp_path / "proc" / "meminfo", f"MemTotal: 1 kB\nMemAvailable:   {20 * 2**20} kB\n")
    write(tmp_path / "proc" / "self" / "cgroup", "")
    monkeypatch.setattr(_memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(_memory, "_CGROUPS", tmp_path / "groups")
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_without_a_limit_it_is_what_the_machine_has(machine: Path) -> None:
    write(machine / "proc" / "self" / "cgroup", "0::/\n")
    write(machine / "groups" / "memory.max", "max\n")

    assert _memory.available_memory() == 20 * GIB


@pytest.mark.parametrize("above", ["", "kubepods/"])
def test_a_limit_of_the_second_kind_of_cgroups_counts_wherever_it_is_set(machine: Path, above: str) -> None:
    write(machine / "proc" / "self" / "cgroup", f"0::/{above}pod\n")
    write(machine / "groups" / "pod" / "memory.max", "max\n")
    group = machine / "groups" / (above or "pod")
    write(group / "memory.max", f"{4 * GIB}\n")
    write(group / "memory.current", f"{3 * GIB}\n")
    write(group / "memory.stat", f"anon 1\ninactive_file {GIB}\nactive_file {GIB}\n")

    assert _memory.available_memory() == 3 * GIB, "pages of files are given up before a process is killed"


@pytest.mark.parametrize("sees_own_group", [True, False])
def test_a_limit_of_the_first_kind_of_cgroups_counts(machine: Path, sees_own_group: bool) -> None:
    write(machine / "proc" / "self" / "cgroup", "5:cpu:/\n4:memory,hugetlb:/docker/7f\n0::/\n")
    root = machine / "groups" / "memory"
    group = root if sees_own_group else root / "docker" / "7f"
    write(group / "memory.limit_in_bytes", f"{2 * GIB}\n")
    write(group / "memory.usage_in_bytes", f"{GIB}\n")
    write(group / "memory.stat", "inactive_file 7\ntotal_inactive_file 0\ntotal_active_file 0\n")

    assert _memory.available_memory() == GIB


def test_pages_of_files_that_the_process_has_mapped_are_not_free(machine: Path) -> None:
    write(machine / "proc" / "self" / "status", f"VmRSS: 9 kB\nRssFile:\t{5 * 2**20} kB\n")

    assert _memory.available_memory() == 15 * GIB


def test_a_group_over_its_limit_leaves_nothing(machine: Path) -> None:
    write(machine / "proc" / "self" / "cgroup", "0::/\n")
    write(machine / "groups" / "memory.max", f"{GIB}\n")
    write(machine / "groups" / "memory.current", f"{2 * GIB}\n")
    write(machine / "groups" / "memory.stat", "inactive_file 0\nactive_file 0\n")

    assert _memory.available_memory() == 0


def test_where_the_system_does_not_say_it_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "_PROC", tmp_path)

    assert _memory.available_memory() is None
