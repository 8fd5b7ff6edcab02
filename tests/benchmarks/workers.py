"""Measure the gain of a second worker when the model is the bottleneck.

Run it by hand on a quiet machine: ``python tests/benchmarks/workers.py`` (``--engine daft`` for this machine without
Ray). Rows of an echo that takes 40 ms each are answered by one worker and by two; what starting the workers takes is
measured by a run of two rows and taken off. It prints the ratio beside its target and gives exit status 1 when it is
missed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import pandas as pd

import qwenvl_kit  # noqa: F401  # registers Series.vl

WANTED_RATIO = 0.6
ECHO: dict[str, Any] = {"backend": "echo", "model_name": "echo-40ms", "batch_size": 1, "progress": False}


def main() -> int:
    """Measure and print; return 1 for a missed target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["daft", "ray"], default="ray")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    _seconds(4, asked.engine, 1)  # the cluster itself
    both = [[_net(asked.rows, asked.engine, n_workers) for n_workers in (1, 2)] for _ in range(asked.repeats)]
    ratios = [two / one for one, two in both]
    print(f"{asked.rows} rows of 40 ms on engine={asked.engine!r}, starting the workers aside, {asked.repeats} runs")
    for n_workers, seconds in enumerate(zip(*both, strict=True), start=1):
        print(f"  {n_workers} worker(s): {_spread([asked.rows / one for one in seconds])} rows/s")
    print(f"  time of two over time of one: {_spread(ratios)} (wanted: at most {WANTED_RATIO})")
    return 0 if statistics.median(ratios) <= WANTED_RATIO else 1


def _net(n_rows: int, engine: str, n_workers: int) -> float:
    return _seconds(n_rows, engine, n_workers) - _seconds(2, engine, n_workers) + 2 * 0.04


def _seconds(n_rows: int, engine: str, n_workers: int) -> float:
    cells = pd.Series([np.full((56, 56, 3), row % 256, np.uint8) for row in range(n_rows)])
    prompts = [str(row) for row in range(n_rows)]
    started = time.perf_counter()
    texts = cells.vl.caption(prompts=prompts, engine=engine, concurrency=n_workers, **ECHO)
    seconds = time.perf_counter() - started
    assert [text.split(" ")[0] for text in texts] == prompts, "every row has its own answer"
    return seconds


def _spread(values: list[float]) -> str:
    numbers = sorted(values)
    return f"{statistics.median(numbers):.3g} (from {numbers[0]:.3g} to {numbers[-1]:.3g})"


if __name__ == "__main__":
    raise SystemExit(main())
