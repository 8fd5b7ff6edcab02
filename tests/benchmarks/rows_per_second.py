"""Measure rows per second without a model, and memory over the inputs.

Run it by hand on a quiet machine: ``python tests/benchmarks/rows_per_second.py``. Prints the figures beside their
targets; exit status 1 for a missed target.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

import qwenvl_kit  # noqa: F401  # registers Series.vl

WANTED_ROWS_PER_S = 2000
WANTED_BYTES, WANTED_BYTES_PER_ROW = 100e6, 1000
ECHO = {"backend": "echo", "batch_size": 32, "progress": False}


def main() -> int:
    """Measure and print; return 1 for a missed target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    paces, growths = zip(*(_in_a_process(_arrays, asked.rows) for _ in range(asked.repeats)), strict=True)
    most = WANTED_BYTES + WANTED_BYTES_PER_ROW * asked.rows
    print(f"{asked.rows} rows of 64×64 arrays on the echo backend, {asked.repeats} runs")
    print(f"  rows/s: {_spread(paces)} (wanted: at least {WANTED_ROWS_PER_S})")
    print(f"  memory over the inputs: {_spread([g / 1e6 for g in growths])} MB (wanted: at most {most / 1e6:.0f} MB)")
    n_files = max(100, asked.rows // 50)
    files = [_in_a_process(_files, n_files)[0] for _ in range(asked.repeats)]
    added = [1000 / slow - 1000 / fast for slow, fast in zip(files, paces, strict=True)]
    print(f"{n_files} JPEG files of about 100 kB")
    print(f"  rows/s: {_spread(files)}; fetching and decoding add {_spread(added)} ms a row")
    return 0 if statistics.median(paces) >= WANTED_ROWS_PER_S and max(growths) <= most else 1


def _arrays(n_rows: int) -> tuple[float, float]:
    pixels = np.random.default_rng(0).integers(0, 256, (n_rows, 64, 64, 3), dtype=np.uint8)
    return _measured(pd.Series(list(pixels)))


def _files(n_rows: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        data = _jpeg_of_100_kb()
        paths = [Path(folder) / f"{row}.jpg" for row in range(n_rows)]
        for row, path in enumerate(paths):
            path.write_bytes(data + row.to_bytes(4))  # bytes after the end make each file another image
        return _measured(pd.Series([str(path) for path in paths]))


def _measured(cells: pd.Series) -> tuple[float, float]:
    """Rows per second, and bytes of peak memory over what the inputs take."""
    cells.head(100).vl.run(**ECHO)
    _reset_peak()
    before = _memory("VmRSS")
    started = time.perf_counter()
    frame = cells.vl.run(**ECHO)
    seconds = time.perf_counter() - started
    assert (frame["status"] == "ok").all()
    return len(cells) / seconds, _memory("VmHWM") - before


def _in_a_process(work: object, n_rows: int) -> tuple[float, float]:
    """Each measurement in a process of its own, whose memory nothing else has touched."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (n_rows,))  # type: ignore[arg-type]


def _memory(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{field} is not in /proc/self/status")


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is in use now


def _jpeg_of_100_kb() -> bytes:
    noise = Image.effect_noise((640, 480), 40).convert("RGB")
    for quality in range(95, 30, -5):
        buffer = io.BytesIO()
        noise.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= 110_000:
            break
    return buffer.getvalue()


def _spread(values: object) -> str:
    numbers = sorted(values)  # type: ignore[call-overload]
    return f"{statistics.median(numbers):.5g} (from {numbers[0]:.5g} to {numbers[-1]:.5g})"


if __name__ == "__main__":
    raise SystemExit(main())
