"""Measure the memory that this process may still use: in a container, less than the machine has free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

RAM_SHARE = 0.5
"""Of free RAM, what keys and values may take unasked: other programs live there too, and a process that takes too much
is killed without an exception."""

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_UNIFIED = ("memory.max", "memory.current", ("inactive_file", "active_file"))  # limit, use, and page cache of files
_LEGACY = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def available_memory() -> int | None:
    """Return the bytes of RAM that this process may still use, None where the system does not say.

    Limits of its cgroup and of all groups above it (Docker's ``--memory``, Kubernetes, systemd's ``MemoryMax``) count.
    Files in the page cache count as free, as in the kernel's own estimate ``MemAvailable``
    (https://docs.kernel.org/filesystems/proc.html#meminfo), except those that this process has mapped: its weights.

    Examples
    --------
    >>> free = available_memory()
    >>> free is None or free > 0
    True
    """
    rooms = [room for room in (_machine(), *_groups()) if room is not None]
    return max(0, min(rooms) - _mapped()) if rooms else None


def in_words(n_bytes: float) -> str:
    """Return a size as people read it.

    Examples
    --------
    >>> in_words(8.8 * 2**30), in_words(70.4 * 2**20)
    ('8.8 GiB', '70 MiB')
    """
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def total_memory() -> int | None:
    """Return the bytes of RAM and swap that this process could ever use, None where the system does not say.

    Examples
    --------
    >>> most = total_memory()
    >>> most is None or most > 0
    True
    """
    try:
        machine = 1024 * (_field(_PROC / "meminfo", "MemTotal:") + _field(_PROC / "meminfo", "SwapTotal:"))
    except (OSError, ValueError):
        return None
    return min([machine, *_limits()])


def resident_memory() -> int | None:
    """Return the bytes of this process in RAM, None where the system does not say.

    Examples
    --------
    >>> used = resident_memory()
    >>> used is None or used > 0
    True
    """
    try:
        return 1024 * _field(_PROC / "self" / "status", "VmRSS:")
    except (OSError, ValueError):
        return None


def _machine() -> int | None:
    try:
        return 1024 * _field(_PROC / "meminfo", "MemAvailable:")
    except (OSError, ValueError):  # macOS and Windows
        return None


def _mapped() -> int:
    try:
        return 1024 * _field(_PROC / "self" / "status", "RssFile:")
    except (OSError, ValueError):
        return 0


def _groups() -> Iterator[int | None]:
    """Yield what the limit of each group leaves, from this process's group up to the root."""
    for group, files in _memory_groups():
        yield _left(group, *files)


def _limits() -> Iterator[int]:
    """Yield the limit of each group that has one; all swap is added, so that the sum is never too low."""
    for group, (limit, _, _) in _memory_groups():
        with contextlib.suppress(OSError, ValueError):
            yield int((group / limit).read_text()) + 1024 * _field(_PROC / "meminfo", "SwapTotal:")


def _memory_groups() -> Iterator[tuple[Path, tuple[str, str, tuple[str, ...]]]]:
    """Yield the folders of this process's group and those above it, with the names of their files."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        legacy = "memory" in controllers.split(",")
        if not legacy and controllers:
            continue
        root = _CGROUPS / "memory" if legacy else _CGROUPS
        # Without a namespace of cgroups, a container sees its own group at the root of the mount.
        inner = PurePosixPath(place.lstrip("/"))
        for group in (inner, *inner.parents):
            yield root / group, (_LEGACY if legacy else _UNIFIED)


def _left(group: Path, limit: str, use: str, cached: tuple[str, ...]) -> int | None:
    try:
        most = int((group / limit).read_text())  # "max" is no limit, and no number
        used = int((group / use).read_text())
        return most - used + sum(_field(group / "memory.stat", name) for name in cached)
    except (OSError, ValueError):
        return None


def _field(file: Path, name: str) -> int:
    """Return the number behind a name in a file of one name a line."""
    for line in file.read_text().splitlines():
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    raise ValueError(f"{file} has no {name}")
