"""Kill pairs of runs on one store at random instants, and resume: nothing counted is lost or answered otherwise.

Run it by hand: ``python tests/reliability/kill.py --kills 200``, or with ``--model demo --kills 6``.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import qwenvl_kit

RUN = """
import os, sys, time
import numpy as np, pandas as pd, qwenvl_kit
store, rows, backend, model, step = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
def count(result):
    os.write(1, f"{order[result.row]}\\n".encode())  # whole lines, also from several threads
    if backend == "echo":
        time.sleep(0.003)
order = list(range(rows))[::step]
cells = [np.full((84, 84, 3), n, dtype=np.uint8) for n in order]
os.write(1, b"begins\\n")
pd.Series(cells).vl.caption(
    backend=backend, model_name=model, dtype="float32", use_flash_attention_2=False, progress=False, store=store,
    max_caption_length=8, control=qwenvl_kit.Control(on_result=count))
"""


@dataclass(frozen=True)
class Verdict:
    """What many kills did.

    Attributes
    ----------
    n_midway : int
        Processes that were killed with some of their rows done.
    n_counted : int
        Rows that killed processes had counted.
    n_repeated, n_different : int
        Rows counted but asked again, and answers other than those of a run that was left alone.
    n_unsound : int
        Files in which SQLite finds a fault.
    """

    n_midway: int
    n_counted: int
    n_repeated: int
    n_different: int
    n_unsound: int

    @property
    def is_good(self) -> bool:
        """Whether every promise was kept."""
        return self.n_repeated == self.n_different == self.n_unsound == 0


def kill_and_resume(n_kills: int, *, rows: int = 200, model: str = "echo", seed: int = 0) -> Verdict:
    """Kill `n_kills` processes, two on each store; resume each store and compare with a run that was left alone."""
    chance = random.Random(seed)
    cells = pd.Series([np.full((84, 84, 3), n, dtype=np.uint8) for n in range(rows)])
    options: dict[str, Any] = {
        "backend": "echo" if model == "echo" else "torch",
        "model_name": model,
        "dtype": "float32",
        "use_flash_attention_2": False,
        "progress": False,
        "max_caption_length": 8,
    }
    whole = cells.vl.caption(**options).tolist()
    n_midway = n_counted = n_repeated = n_different = n_unsound = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(-(-n_kills // 2)):
            store = Path(folder) / f"{number}.db"
            n_processes = min(2, n_kills - 2 * number)
            counted = _killed(store, rows, str(options["backend"]), model, chance, n_processes)
            n_unsound += store.exists() and not is_sound(store)
            resumed = cells.vl.run(store=store, **options)
            n_midway += sum(0 < len(some) < rows for some in counted)
            n_counted += sum(map(len, counted))
            n_repeated += sum(not resumed["cached"].iloc[row] for row in set().union(*counted))
            n_different += sum(a != b for a, b in zip(resumed["text"], whole, strict=True))
    return Verdict(n_midway, n_counted, n_repeated, n_different, n_unsound)


def is_sound(store: Path) -> bool:
    """Whether SQLite finds no fault in a file."""
    with closing(sqlite3.connect(store)) as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)])


def _killed(
    store: Path, rows: int, backend: str, model: str, chance: random.Random, n_processes: int
) -> list[list[int]]:
    """Rows that each of the killed processes had counted; the second one goes through them from the end."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, str(store), str(rows), backend, model, str(step)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for step in (1, -1)[:n_processes]
    ]
    counted = []
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()  # both are at work before the first is killed
    for process in chance.sample(processes, len(processes)):
        assert process.stdout is not None
        read = [process.stdout.readline() for _ in range(max(0, chance.randrange(-rows // 10, rows)))]
        time.sleep(chance.random() * 0.01)
        os.kill(process.pid, signal.SIGKILL)
        rest = process.communicate()[0].splitlines(keepends=True)
        counted.append([int(line) for line in [*read, *rest] if line.endswith("\n")])
    return counted


def main() -> int:
    """Kill, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--model", default="echo")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    verdict = kill_and_resume(asked.kills, rows=asked.rows, model=asked.model, seed=asked.seed)
    qwenvl_kit.unload()
    print(
        f"| `tests/reliability/kill.py` | {asked.kills} kills -9 of pairs of processes on one store ({asked.model}), "
        f"{verdict.n_midway} of them in mid-run, {verdict.n_counted} rows counted: {verdict.n_repeated} asked again, "
        f"{verdict.n_different} answers different, {verdict.n_unsound} files unsound |"
    )
    return 0 if verdict.is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
