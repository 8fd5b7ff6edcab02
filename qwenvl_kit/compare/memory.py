"""Measure peak memory: torch's allocations on CUDA, else the resident set of the process on Linux."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"  # https://docs.kernel.org/filesystems/proc.html: resets VmHWM to the present resident set


@dataclass(slots=True)
class Peak:
    """A measured peak; ``mib`` and ``kind`` are None where the platform reports none."""

    mib: float | None = None
    kind: str | None = None


@contextlib.contextmanager
def measure_peak() -> Iterator[Peak]:
    """Measure the peak memory of the ``with`` block; set when the block ends.

    Examples
    --------
    >>> with measure_peak() as peak:
    ...     held = bytes(1_000_000)
    >>> peak.mib is None or peak.mib > 1
    True
    """
    peak = Peak()
    torch = sys.modules.get("torch")
    on_cuda = torch is not None and torch.cuda.is_available()
    was_reset = False
    if on_cuda and torch is not None:
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            _CLEAR.write_text(_RESET_PEAK)
            was_reset = True
    yield peak
    if on_cuda and torch is not None:
        held = sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))
        peak.mib, peak.kind = held / 2**20, "allocated on CUDA"
    elif was_reset and (found := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())):
        peak.mib, peak.kind = int(found[1]) / 2**10, "resident set of the process"
