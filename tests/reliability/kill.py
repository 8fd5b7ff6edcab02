"""A run killed at random instants, and resumed: nothing counted is lost, nothing is answered otherwise.

Run it by hand: ``python tests/reliability/kill.py --kills 100``, or with ``--model demo --kills 5``.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import qwenvl_kit

RUN = """
import sys, time
import numpy as np, pandas as pd, qwenvl_kit
store, rows, backend, model = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
def count(result):
    print(result.row, flush=True)
    if backend == "echo":
        time.sleep(0.003)
cells = [np.full((84, 84, 3), n, dtype=np.uint8) for n in range(rows)]
print("begins", flush=True)
pd.Series(cells).vl.caption(
    backend=backend, model_name=model, dtype="float32", use_flash_attention_2=False, progress=False, store=store,
    max_caption_length=8, control=qwenvl_kit.Control(on_result=count))
"""


@dataclass(frozen=True)
class Verdict:
    """Of many kills: how many came in mid-run, rows counted but asked again, and answers that differ."""

    n_midway: int
    n_repeated: int
    n_different: int


def kill_and_resume(n_kills: int, *, rows: int = 200, model: str = "echo", seed: int = 0) -> Verdict:
    """Kill `n_kills` runs, each at a random instant, resume each and compare it with a run that was left alone."""
    chance = random.Random(seed)
    cells = pd.Series([np.full((84, 84, 3), n, dtype=np.uint8) for n in range(rows)])
    options = {
        "backend": "echo" if model == "echo" else "torch",
        "model_name": model,
        "dtype": "float32",
        "use_flash_attention_2": False,
        "progress": False,
        "max_caption_length": 8,
    }
    whole = cells.vl.caption(**options).tolist()
    n_midway = n_repeated = n_different = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(n_kills):
            store = Path(folder) / f"{number}.db"
            counted = _killed(store, rows, str(options["backend"]), model, chance)
            resumed = cells.vl.run(store=store, **options)
            n_midway += 0 < len(counted) < rows
            n_repeated += sum(not resumed["cached"].iloc[row] for row in counted)
            n_different += sum(a != b for a, b in zip(resumed["text"], whole, strict=True))
    return Verdict(n_midway, n_repeated, n_different)


def _killed(store: Path, rows: int, backend: str, model: str, chance: random.Random) -> list[int]:
    """Rows that a killed process had counted."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(store), str(rows), backend, model], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    read = [process.stdout.readline() for _ in range(max(0, chance.randrange(-rows // 10, rows)))]
    time.sleep(chance.random() * 0.01)
    os.kill(process.pid, signal.SIGKILL)
    rest = process.communicate()[0].splitlines(keepends=True)
    return [int(line) for line in [*read, *rest] if line.endswith("\n")]


def main() -> int:
    """Kill, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--model", default="echo")
    asked = parser.parse_args()
    verdict = kill_and_resume(asked.kills, rows=asked.rows, model=asked.model)
    qwenvl_kit.unload()
    print(
        f"{asked.kills} kills of {asked.rows} rows on {asked.model}, {verdict.n_midway} of them in mid-run: "
        f"{verdict.n_repeated} counted rows asked again, {verdict.n_different} answers different"
    )
    return 0 if verdict.n_repeated == verdict.n_different == 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
