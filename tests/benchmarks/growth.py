"""Measure pace and memory of 10,000 images relative to 1,000.

The embedded model captions drawn scenes, each in a file of its own: ``python tests/benchmarks/growth.py``. Prints and
writes the figures beside their targets; exit status 1 for a missed target. Five minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
from contest import RESULTS, machine, spread
from PIL import Image

from qwenvl_kit import Control
from qwenvl_kit.demo import draw, sample_scenes

WANTED_PACE, WANTED_MEMORY = 0.95, 1.05


def main() -> int:
    """Measure and print; return 1 for a missed target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1000, help="and ten times as many")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--turns", type=int, default=2)
    asked = parser.parse_args()
    few, many = [], []
    with tempfile.TemporaryDirectory() as folder:
        paths = _draw(Path(folder), 10 * asked.rows)
        for _ in range(asked.turns):  # few before and after many: the machine's own pace drifts
            few.append(_in_a_process(paths[: asked.rows], asked.batch_size))
            many.append(_in_a_process(paths, asked.batch_size))
        few.append(_in_a_process(paths[: asked.rows], asked.batch_size))
    beside = list(zip(many, few, few[1:], strict=False))
    pace = spread([2 * one["rows_per_s"] / (b["rows_per_s"] + a["rows_per_s"]) for one, b, a in beside])
    memory = spread([2 * one["peak_mb"] / (b["peak_mb"] + a["peak_mb"]) for one, b, a in beside])
    found = {
        "workload": f"captions of {asked.rows} and of {10 * asked.rows} drawn scenes by the embedded model, torch",
        "machine": machine(),
        "few": few,
        "many": many,
        "pace_of_many_to_few": pace,
        "memory_of_many_to_few": memory,
        "wanted": {"pace": WANTED_PACE, "memory": WANTED_MEMORY},
    }
    print(json.dumps(found, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "growth.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if pace["median"] >= WANTED_PACE and memory["median"] <= WANTED_MEMORY else 1


def _draw(folder: Path, n: int) -> list[str]:
    paths = [str(folder / f"{row}.png") for row in range(n)]
    for path, scene in zip(paths, sample_scenes(n, seed=5), strict=True):
        Image.fromarray(draw(scene)).save(path, compress_level=1)
    return paths


def _in_a_process(paths: list[str], batch_size: int) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_answer, paths, batch_size).result()


def _answer(paths: list[str], batch_size: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "model_name": "demo",
        "dtype": "float32",
        "use_flash_attention_2": False,
        "batch_size": batch_size,
        "progress": False,
    }
    cells = pd.Series(paths)
    cells[:32].vl.caption(**options)  # the model is loaded, and warm
    memory: list[float] = []  # after each tenth of the rows
    settled = 0

    def listen(_: Any) -> None:
        nonlocal settled
        settled += 1
        if settled * 10 % len(paths) == 0:
            memory.append(_resident_mb())

    started = time.perf_counter()
    frame = cells.vl.run(control=Control(on_result=listen), **options)
    seconds = time.perf_counter() - started
    assert (frame["status"] == "ok").all()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pace = round(len(paths) / seconds, 2)
    return {"rows": len(paths), "rows_per_s": pace, "peak_mb": round(peak, 1), "mb_after_each_tenth": memory}


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 2**20, 1)


if __name__ == "__main__":
    raise SystemExit(main())
