"""Let disks run full at random instants of a run, make room, and resume: nothing counted is lost or asked again.

Run it by hand: ``python tests/reliability/full_disk.py --disks 100``. As root each disk is a small tmpfs, in a mount
namespace of its own; else, and with ``--how limit``, a limit on the size of this process's files stands in for it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

import qwenvl_kit
from qwenvl_kit import frame_run

_PAUSE_S = 0.001  # after each row, so that a run takes long enough to be met in its middle


class Disk(Protocol):
    """A place that can be full."""

    def fill(self) -> None:
        """Leave no room for another byte."""
        ...

    def make_room(self) -> None:
        """Undo it."""
        ...


class Tmpfs:
    """A small file system that a large file fills."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Write until nothing fits."""
        with self._ballast.open("wb", buffering=0) as file:
            for size in (2**16, 2**9):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def make_room(self) -> None:
        """Remove the file."""
        self._ballast.unlink(missing_ok=True)


class Limit:
    """No file of this process may grow any more."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        """Limit all files to the size of the largest one."""
        largest = max((path.stat().st_size for path in self._folder.iterdir()), default=0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, self._before[1]))

    def make_room(self) -> None:
        """Take the limit away."""
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


@dataclass
class Verdict:
    """What many full disks did.

    Attributes
    ----------
    n_midway : int
        Runs that the disk ended with some of their rows done.
    n_counted : int
        Rows that were counted before the end.
    n_lost : int
        Rows counted that the run did not give back.
    n_repeated, n_different : int
        Rows counted but asked again, and answers other than those of a run that was left alone.
    n_unsound : int
        Files in which SQLite finds a fault.
    n_stuck : int
        Runs that did not end well once there was room.
    """

    n_midway: int = 0
    n_counted: int = 0
    n_lost: int = 0
    n_repeated: int = 0
    n_different: int = 0
    n_unsound: int = 0
    n_stuck: int = 0

    @property
    def is_good(self) -> bool:
        """Whether every promise was kept."""
        return not any((self.n_lost, self.n_repeated, self.n_different, self.n_unsound, self.n_stuck))


def fill_and_resume(n_disks: int, how: str, *, rows: int, seed: int) -> Verdict:
    """Run on `n_disks` disks that are filled at random instants, and once more when there is room."""
    chance = random.Random(seed)
    cells = pd.Series([np.full((28, 28, 3), n, dtype=np.uint8) for n in range(rows)])
    options: dict[str, Any] = {"backend": "echo", "progress": False, "prompt": "What is it? " * 40}
    whole = cells.vl.caption(**options).tolist()
    verdict = Verdict()
    for number in range(n_disks):
        with _disk(how) as (folder, disk):
            store = folder / f"{number}.db"
            filled_after_s = max(0.0, chance.uniform(-0.05, 1.2)) * rows * _PAUSE_S * 1.4
            counted = _run(cells, {**options, "store": store}, disk, filled_after_s, verdict)
            disk.make_room()
            verdict.n_unsound += store.exists() and not _is_sound(store)
            try:
                resumed = cells.vl.run(store=store, **options)
            except qwenvl_kit.StoreError as error:
                print(f"disk {number}: {error}", file=sys.stderr)
                verdict.n_stuck += 1
                continue
            verdict.n_counted += len(counted)
            verdict.n_repeated += sum(not resumed["cached"].iloc[row] for row in counted)
            verdict.n_different += sum(a != b for a, b in zip(resumed["text"], whole, strict=True))
    return verdict


def _run(cells: pd.Series, options: dict[str, Any], disk: Disk, filled_after_s: float, verdict: Verdict) -> list[int]:
    """Run until the disk ends it, and give the rows that were counted."""
    counted: list[int] = []

    def count(result: qwenvl_kit.Result) -> None:
        if result.status == "ok":
            counted.append(result.row)
        time.sleep(_PAUSE_S)

    filling = threading.Timer(filled_after_s, disk.fill)
    if filled_after_s > 0:
        filling.start()
    else:
        disk.fill()
    frame: pd.DataFrame | None
    frame_run.remember(None)
    try:
        frame = cells.vl.run(control=qwenvl_kit.Control(on_result=count), **options)
    except qwenvl_kit.StoreError:
        frame = qwenvl_kit.last_run()
    filling.cancel()
    if filling.is_alive():
        filling.join()
    done = set() if frame is None else set(np.flatnonzero(frame["status"] == "ok").tolist())
    verdict.n_midway += 0 < len(counted) < len(cells)
    verdict.n_lost += len(set(counted) - done)
    return counted


@contextlib.contextmanager
def _disk(how: str) -> Iterator[tuple[Path, Disk]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if how == "limit":
            limit = Limit(folder)
            try:
                yield folder, limit
            finally:
                limit.make_room()
            return
        subprocess.check_call(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", name])
        try:
            yield folder, Tmpfs(folder)
        finally:
            subprocess.check_call(["umount", name])


def _is_sound(store: Path) -> bool:
    with closing(sqlite3.connect(store)) as connection:
        return bool(connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)])


def _may_mount() -> bool:
    unshare = shutil.which("unshare")
    if os.geteuid() != 0 or unshare is None:
        return False
    probe = 'd=$(mktemp -d) && mount -t tmpfs tmpfs "$d" && umount "$d" && rmdir "$d"'
    return subprocess.run([unshare, "-m", "sh", "-c", probe], capture_output=True).returncode == 0


def main() -> int:
    """Fill, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--disks", type=int, default=100)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--how", choices=("tmpfs", "limit"), default="tmpfs" if _may_mount() else "limit")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # the namespace is there already
    asked = parser.parse_args()
    if asked.how == "tmpfs" and not asked.inside:
        return subprocess.call(["unshare", "-m", sys.executable, __file__, *sys.argv[1:], "--how=tmpfs", "--inside"])
    warnings.simplefilter("ignore", qwenvl_kit.StoreWarning)  # the record of a run that met a full disk
    verdict = fill_and_resume(asked.disks, asked.how, rows=asked.rows, seed=asked.seed)
    print(
        f"| `tests/reliability/full_disk.py` | {asked.disks} full disks ({asked.how}), {verdict.n_midway} of them in "
        f"mid-run, {verdict.n_counted} rows counted: {verdict.n_lost} lost, {verdict.n_repeated} asked again, "
        f"{verdict.n_different} answers different, {verdict.n_unsound} files unsound, {verdict.n_stuck} not resumed |"
    )
    return 0 if verdict.is_good else 1


if __name__ == "__main__":
    raise SystemExit(main())
