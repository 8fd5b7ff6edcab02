"""Damaged cells by the hundred thousand: each a result or a row error, within bounded time and memory.

Run it by hand: ``python tests/reliability/fuzz.py --cases 100000``. It prints what became of the cases, the slowest of
them and the memory taken, and gives exit status 1 when one broke its bound.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from rubbish import mutations

from qwenvl_kit.config import Config
from qwenvl_kit.errors import RowError
from qwenvl_kit.images import Limits, Sizing, identify, load
from qwenvl_kit.prompts import fill
from qwenvl_kit.records import Geometry

MOST_SECONDS, MOST_BYTES = 2.0, 2**30


def fuzz(n_cases: int, seed: int) -> tuple[Counter[str], float]:
    """Look at `n_cases` damaged cells and give what became of them and the longest time of one, in seconds.

    Raises
    ------
    Exception
        Whatever is no row error: a fault of ours.
    """
    config = Config(timeout_s=0.2, allow_private_hosts=False, max_image_pixels=4_000_000)
    sizing, limits = Sizing.of(config, Geometry(max_pixels=200_000)), Limits.of(config)
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for _, cell in zip(range(n_cases), mutations(seed), strict=False):
        started = time.perf_counter()
        outcomes[_outcome(cell, sizing, limits)] += 1
        slowest = max(slowest, time.perf_counter() - started)
        if isinstance(cell, str):
            assert fill([cell], "default", 1) == [cell or "default"]
    return outcomes, slowest


def _outcome(cell: object, sizing: Sizing, limits: Limits) -> str:
    try:
        pictures = [load(source, sizing, limits) for source in identify(cell)]
    except RowError as error:
        return error.stage
    return "ok" if pictures else "null_image"


def _memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> int:
    """Fuzz, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow warns of odd metadata
    started = time.perf_counter()
    outcomes, slowest = fuzz(asked.cases, asked.seed)
    took, memory = time.perf_counter() - started, _memory()
    print(f"{asked.cases} cases in {took:.0f} s: {dict(outcomes)}")
    print(f"slowest case {slowest:.3f} s (at most {MOST_SECONDS}), peak memory {memory / 2**20:.0f} MiB (at most 1024)")
    return 0 if slowest <= MOST_SECONDS and memory <= MOST_BYTES else 1


if __name__ == "__main__":
    raise SystemExit(main())
