"""Count the CPUs that this process may use: in a container, fewer than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_V2 = Path("/sys/fs/cgroup/cpu.max")
_CGROUP_V1 = (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))


def available_cpus() -> int:
    """Return the number of CPUs that this process may use, at least 1.

    Affinity masks (``taskset``, SLURM, cpusets) and cgroup quotas (Docker's ``--cpus``, Kubernetes) count;
    ``os.cpu_count`` knows neither: https://docs.python.org/3/library/os.html#os.cpu_count.

    Examples
    --------
    >>> available_cpus() >= 1
    True
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS and Windows have no affinity masks
        allowed = os.cpu_count() or 1
    quota = _quota()
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def _quota() -> float | None:
    """Return the CPUs that the cgroup grants, None where it grants all."""
    try:
        if _CGROUP_V2.is_file():
            limit, period = _CGROUP_V2.read_text().split()
        else:
            limit, period = (file.read_text().strip() for file in _CGROUP_V1)
        return None if limit in ("max", "-1") else float(limit) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
