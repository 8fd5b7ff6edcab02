"""A large frame with a tenth of bad rows: exactly those are errors, of the right stages, and the others lose no time.

Run it by hand on a quiet machine: ``python tests/reliability/bad_rows.py``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pandas as pd
from helpers.malformed_inputs import bad_kinds

import qwenvl_kit

WANTED_PACE = 0.9
ECHO = {"backend": "echo", "batch_size": 32, "progress": False}


def cells(n_rows: int, *, with_bad: bool) -> tuple[list[object], list[str]]:
    """Cells and what must become of each; every tenth is bad, the twelve kinds in turn."""
    chance = np.random.default_rng(0)
    made: list[object] = []
    outcomes: list[str] = []
    for row in range(n_rows):
        if with_bad and row % 10 == 3:
            case = bad_kinds(row)[row // 10 % 12]
            made.append(case.cell)
            outcomes.append(case.outcomes[0])
        else:
            made.append(chance.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            outcomes.append("ok")
    return made, outcomes


def check(made: list[object], outcomes: list[str]) -> tuple[int, float]:
    """Rows that came out otherwise than they must, and rows per second."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qwenvl_kit.RowErrorWarning)
        frame = pd.Series(made, dtype=object).vl.run(**ECHO)
    pace = len(made) / (time.perf_counter() - started)
    came = frame["stage"].where(frame["status"] == "error", frame["status"])
    right_texts = frame["text"].notna() == (frame["status"] == "ok")
    return int((came.to_numpy() != np.array(outcomes)).sum() + (~right_texts).sum()), pace


def main() -> int:
    """Run clean and bad in turn, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    clean, bad = cells(asked.rows, with_bad=False), cells(asked.rows, with_bad=True)
    check(*cells(500, with_bad=True))
    n_wrong, ratios = 0, []
    for _ in range(asked.repeats):
        (wrong_clean, pace_clean), (wrong_bad, pace_bad) = check(*clean), check(*bad)
        n_wrong += wrong_clean + wrong_bad
        ratios.append(pace_bad / pace_clean)
    counts = dict(Counter(bad[1]))
    print(f"{asked.rows} rows, of them {counts}: {n_wrong} came out otherwise")
    print(
        f"pace beside a clean frame: {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f}; "
        f"wanted: at least {WANTED_PACE})"
    )
    return 0 if n_wrong == 0 and statistics.median(ratios) >= WANTED_PACE else 1


if __name__ == "__main__":
    raise SystemExit(main())
