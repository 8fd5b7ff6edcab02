"""Measured seconds of vision, prompt and decode passes, kept per machine and model.

`qwenvl-kit bench` writes them. Plans of a run read them. Nothing is loaded here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qwenvl_kit._cpu import available_cpus
from qwenvl_kit._version import __version__

_Seconds = Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Seconds of passes of one model on one machine.

    Attributes
    ----------
    device : str
        Hardware, from `device_label`.
    fingerprint : str
        Of the resolved config: weights, dtype, attention, quantisation and whether steps are compiled.
    model, backend, dtype : str
        For people who read the file.
    vision_s : mapping of int to float
        Patches of one image to seconds of its vision pass, cutting and upload included.
    prefill_s : mapping of int to float
        Tokens of one prompt to seconds of its pass.
    decode_s : mapping of int to float
        Rows of a decode step to seconds of the step, sampling included.
    measured_at, version : str
        Time (ISO 8601, UTC) and version of this package.

    Examples
    --------
    >>> measured = Calibration(
    ...     device="a CPU", fingerprint="f", model="demo", backend="torch", dtype="float32",
    ...     vision_s={1000: 1.0, 2000: 2.2}, prefill_s={100: 0.5}, decode_s={1: 0.1, 4: 0.2},
    ... )
    >>> round(measured.seconds_of_image(4000), 1), measured.seconds_of_prompt(200)
    (5.2, 1.0)
    >>> measured.seconds_of_step(1), round(measured.seconds_of_step(2), 3), measured.seconds_of_step(8)
    (0.1, 0.133, 0.4)
    """

    device: str
    fingerprint: str
    model: str
    backend: str
    dtype: str
    vision_s: _Seconds
    prefill_s: _Seconds
    decode_s: _Seconds
    measured_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    version: str = __version__

    def seconds_of_image(self, n_patches: int) -> float:
        """Return the seconds that the vision pass of an image of `n_patches` takes."""
        return _with_quadratic_part(self.vision_s, n_patches)

    def seconds_of_prompt(self, n_tokens: int) -> float:
        """Return the seconds that a prompt of `n_tokens` takes, its visual tokens included."""
        return _with_quadratic_part(self.prefill_s, n_tokens)

    def seconds_of_step(self, n_rows: int) -> float:
        """Return the seconds of a decode step of `n_rows`: interpolated, and in proportion beyond the largest."""
        rows = sorted(self.decode_s)
        below = max((n for n in rows if n <= n_rows), default=rows[0])
        above = min((n for n in rows if n >= n_rows), default=None)
        if above is None:
            return self.decode_s[below] * n_rows / below
        if above == below or n_rows < below:
            return self.decode_s[below]
        share = (n_rows - below) / (above - below)
        return self.decode_s[below] + share * (self.decode_s[above] - self.decode_s[below])


def device_label(device: str, *, gpu_name: str | None = None, threads: int | None = None) -> str:
    """Return the hardware behind a device: a GPU by its name, a CPU with the threads that compute.

    Parameters
    ----------
    device : str
        ``cpu``, ``cuda:0`` or a device map's places.
    gpu_name : str, optional
        As the driver calls it; with it the device is a GPU.
    threads : int, optional
        Threads that compute on a CPU; None is one per core that this process may use.

    Examples
    --------
    >>> device_label("cuda:0", gpu_name="NVIDIA H200")
    'NVIDIA H200'
    """
    if gpu_name is not None:
        return gpu_name if "+" not in device else f"{device} ({gpu_name})"
    return f"{_cpu_name()}, {threads or available_cpus()} threads"


def read_calibration(fingerprint: str, device: str) -> Calibration | None:
    """Return what was measured of a model on a device; None where nothing was, or the file cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        stored: dict[str, Any] = json.loads(_file(fingerprint, device).read_text(encoding="utf-8"))
        known = {one.name: stored[one.name] for one in fields(Calibration)}
        points = {name: _points(known[name]) for name in ("vision_s", "prefill_s", "decode_s")}
        found = Calibration(**{**known, **points})
        return found if (found.fingerprint, found.device) == (fingerprint, device) else None
    return None


def write_calibration(measured: Calibration) -> Path:
    """Keep a calibration in place of an earlier one, and return its file.

    Raises
    ------
    OSError
        The cache folder cannot be written.
    """
    file = _file(measured.fingerprint, measured.device)
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            json.dump(asdict(measured), out, indent=1, ensure_ascii=False)
        os.replace(name, file)  # readers see the old file or the new one
    except BaseException:
        os.unlink(name)
        raise
    return file


def _file(fingerprint: str, device: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.blake2b(f"{fingerprint}:{device}".encode(), digest_size=16).hexdigest()
    return cache / "qwenvl_kit" / "calibration" / f"{key}.json"


def _points(stored: Mapping[str, Any]) -> dict[int, float]:
    """Return sizes and their seconds; JSON's keys are text."""
    points = {int(size): float(seconds) for size, seconds in stored.items()}
    if not points or min(points) < 1 or not all(0 < seconds < float("inf") for seconds in points.values()):
        raise ValueError("no sizes, or seconds that no pass takes")
    return points


def _with_quadratic_part(points: _Seconds, n: int) -> float:
    """Return a·n + b·n² through the smallest and the largest point: attention grows with the square.

    Fixed costs make small passes slower than that; then b is 0 and a is that of the largest point.
    """
    small, large = min(points), max(points)
    pace, slope = points[large] / large, 0.0
    if large > small:
        slope = max(0.0, (pace - points[small] / small) / (large - small))
    return n * max(pace + slope * (n - large), 0.0)


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "CPU"
