"""Malformed files, cells and servers' answers by the hundred thousand, in whole runs beside good rows.

Run it by hand: ``python tests/reliability/fuzz.py --kind files --cases 300000``. Nothing may come out of ``run()``;
every good row is answered with its own image; no row takes longer, and the run no more memory, than the bounds below.
It prints one table and gives exit status 1 at a breach. ``--save FOLDER`` keeps the inputs at fault.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import itertools
import math
import os
import resource
import sys
import threading
import time
import traceback
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pandas as pd
from helpers.fake_backends import within
from helpers.malformed_inputs import encoded, noise
from helpers.malformed_inputs.answers import Answer, answers, image_of, serve
from helpers.malformed_inputs.cells import cells
from helpers.malformed_inputs.mutations import mutations
from helpers.malformed_inputs.seeds import may_become_image

import qwenvl_kit  # noqa: F401  # registers Series.vl

DECODE_S = 2.0
"""Most seconds of one row: what ``decode_timeout_s`` is by default."""

SLACK_S = 0.5  # a process that decodes is watched 20 times a second, and the next one takes 0.1 s to start
MOST_BYTES = 600 * 10**6
"""Most memory of a run above that of as many good rows."""

MOST_LEFT = 64  # open files and threads that a run may leave behind: kept connections, and the warm backend's own
LONGEST_MESSAGE = 1000
HANGS_S = 240.0
FETCH_S = 1.0
EVERY = 10  # the place of good rows
ECHO: dict[str, Any] = {"backend": "echo", "batch_size": 32, "progress": False}
_STATUSES = ("ok", "null_image", "fetch", "decode", "resize", "other")


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes
    ----------
    kind : str
        What it is a case of.
    cell : object
        The cell itself.
    digest : str or None
        Of the image that the answer must name; None where a row error is right as well.
    may_be_ok : bool
        Whether it can be an image at all.
    origin : bytes or None
        What stands behind the cell, where the cell is an address.
    """

    kind: str
    cell: object
    digest: str | None = None
    may_be_ok: bool = True
    origin: bytes | None = None


@dataclass
class Breach:
    """A promise that was not kept, and by which row."""

    what: str
    row: Row | None = None
    detail: str = ""


@dataclass
class Report:
    """What became of the rows, what they cost, and what went wrong."""

    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    breaches: list[Breach] = field(default_factory=list)
    n_good: int = 0
    n_odd: int = 0
    n_stopped: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0
    slowest: str = "none took 0.5 s"
    clean_bytes: int = 0
    peak_bytes: int = 0
    heaviest: list[Row] = field(default_factory=list)

    def breach(self, what: str, row: Row | None = None, detail: str = "") -> None:
        """Enter a breach."""
        self.breaches.append(Breach(what, row, detail))


@dataclass
class _Batch:
    frame: pd.DataFrame | None
    error: BaseException | None
    wall_s: float
    cpu_s: float
    peak_bytes: int


def fuzz(
    kind: str, n_cases: int, seed: int, *, n_batch: int = 500, most_bytes: int = MOST_BYTES, most_s: float = math.inf
) -> Report:
    """Run `n_cases` odd rows in batches, with good rows between them.

    Parameters
    ----------
    kind : {"files", "cells", "servers"}
        Damaged files as bytes; odd cells; addresses of a server that answers oddly.
    n_cases, seed : int
        Equal seeds give equal cases.
    n_batch : int
        Odd rows of one run.
    most_bytes : int
        Most memory above the clean run's.
    most_s : float
        Seconds after which no batch begins.
    """
    report = Report()
    options = {**ECHO, "timeout_s": FETCH_S} if kind == "servers" else ECHO
    with _rows(kind, n_cases, seed) as (odd, good, pids):
        gc.collect()
        runner = _Runner(options, good, pids)
        clean = [runner.run(list(itertools.islice(itertools.cycle(good), n_batch))) for _ in range(2)]
        report.clean_bytes = clean[-1].peak_bytes
        before = _left()
        started = time.perf_counter()
        while time.perf_counter() - started < most_s and (batch := list(itertools.islice(odd, n_batch))):
            _judge(runner, batch, report)
            if any(breach.what == "hangs" for breach in report.breaches):
                break
        report.seconds = time.perf_counter() - started
        _judge_end(runner, report, before, most_bytes)
    return report


@contextlib.contextmanager
def _rows(kind: str, n_cases: int, seed: int) -> Iterator[tuple[Iterator[Row], list[Row], frozenset[int]]]:
    """Odd rows, good rows, and processes that are not the client's."""
    if kind == "files":
        odd = (Row(case.seed.split()[0], case.data, may_be_ok=may_become_image(case.data)) for case in mutations(seed))
        yield itertools.islice(odd, n_cases), _good(), frozenset()
    elif kind == "cells":
        made = (Row(name, cell) for name, cell in cells(seed))
        yield itertools.islice(made, n_cases), _good(), frozenset()
    else:
        with serve(seed, n_cases) as (addresses, pid), serve(0, 0) as (others, other_pid):
            given = answers(seed, n_cases)
            served = (
                Row(
                    answer.name,
                    f"{_address(answer, number, addresses)}/{number}",
                    None if answer.image is None else _digest(answer.image),
                    origin=b"".join(part for part in answer.parts if isinstance(part, bytes)),
                )
                for number, answer in enumerate(given)
            )
            good = [*_good()[:10], *(Row("good", f"{others[n % 8]}/good{n}", _digest(image_of(n))) for n in range(40))]
            yield served, good, frozenset({pid, other_pid})


def _address(answer: Answer, number: int, addresses: list[str]) -> str:
    """The host for an answer: one that asks for patience is left alone, with all that it serves."""
    if answer.name == "Retry-After":
        return addresses[number % 2]
    return addresses[-1 - number % 2] if answer.image is not None else addresses[2 + number % (len(addresses) - 4)]


def _good() -> list[Row]:
    """Fifty good rows of all forms that a cell may have."""
    rows: list[Row] = []
    for number in range(10):
        image = noise(40 + number, 32, number)
        for form in ("PNG", "JPEG", "WEBP"):
            data = encoded(image, form)
            rows.append(Row("good", data, _digest(data)))
        pixels = np.asarray(image)
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=16)
        digest.update(repr(pixels.shape).encode())
        rows.append(Row("good", pixels, digest.hexdigest()))
        other = noise(33, 40 + number, 100 + number)
        digest = hashlib.blake2b(np.asarray(other).tobytes(), digest_size=16)
        digest.update(repr(np.asarray(other).shape).encode())
        rows.append(Row("good", other, digest.hexdigest()))
    return rows


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class _Runner:
    """Runs rows, with good ones between them, and measures."""

    def __init__(self, options: dict[str, Any], good: list[Row], pids: frozenset[int]) -> None:
        self._options, self.good, self._pids = options, good, pids
        self._alone: _Batch | None = None

    def mixed(self, odd: Sequence[Row]) -> list[Row]:
        """The rows with good ones at the beginning, at the end and at every tenth place."""
        good = itertools.cycle(self.good)
        rows = [next(good)]
        for number, row in enumerate(odd, start=1):
            rows.append(row)
            if number % (EVERY - 1) == 0:
                rows.append(next(good))
        return [*rows, next(good)]

    def run(self, rows: Sequence[Row]) -> _Batch:
        """Run rows as they are."""
        made = np.empty(len(rows), dtype=object)
        for number, row in enumerate(rows):
            made[number] = row.cell
        column = pd.Series(made, dtype=object)
        frame: pd.DataFrame | None = None
        failed: BaseException | None = None
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s, started = time.process_time(), time.perf_counter()
        with PeakMemory(self._pids) as memory, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # row errors are what is looked at here, and Pillow warns of odd metadata
            try:
                frame = within(HANGS_S, lambda: column.vl.run(**self._options))
            except Exception as error:  # noqa: BLE001  # it is the finding
                failed = error
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = time.process_time() - cpu_s
        cpu_s += after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
        return _Batch(frame, failed, time.perf_counter() - started, cpu_s, memory.peak)

    def alone(self, row: Row) -> float:
        """CPU seconds that one row adds to a run."""
        if self._alone is None:
            self._alone = self.run([self.good[0]])
        return self.run([self.good[0], row]).cpu_s - self._alone.cpu_s


def _judge(runner: _Runner, odd: list[Row], report: Report) -> None:
    report.n_odd += len(odd)
    left = odd
    for _ in range(6):
        rows = runner.mixed(left)
        done = runner.run(rows)
        if done.peak_bytes > report.peak_bytes:
            report.peak_bytes, report.heaviest = done.peak_bytes, left
        if done.error is None:
            break
        what = "hangs" if isinstance(done.error, AssertionError) and "still at work" in str(done.error) else "exception"
        if what == "hangs":
            report.breach(what, None, f"{len(left)} rows from row {report.n_odd - len(odd)} on")
            return
        culprit = _culprit(runner, left, lambda part: runner.run(runner.mixed(part)).error is not None)
        report.breach(what, culprit, _told(done.error))
        if culprit is None:
            return
        left = [row for row in left if row is not culprit]
    if done.frame is None:
        return
    n_stopped = _judge_rows(rows, done.frame, report)
    report.n_stopped += n_stopped
    # Rows that were ended took what they may; what is left over must be shared by all others.
    if done.cpu_s - n_stopped * (DECODE_S + SLACK_S) > DECODE_S:
        _judge_slow(runner, left, report)


def _judge_rows(rows: list[Row], frame: pd.DataFrame, report: Report) -> int:
    """Enter what became of each row; the number of those that were ended."""
    n_stopped = 0
    if len(frame) != len(rows):
        report.breach("length", None, f"{len(rows)} rows in, {len(frame)} out")
        return 0
    for row, status, stage, text, error in zip(
        rows, frame["status"], frame["stage"], frame["text"], frame["error"], strict=True
    ):
        outcome = stage if status == "error" else status
        is_good = row.kind == "good"
        report.n_good += is_good
        if not is_good:
            report.outcomes[row.kind][outcome if outcome in _STATUSES else "other"] += 1
        if row.digest is not None and (status != "ok" or not str(text).endswith(f" {row.digest[:8]}]")):
            report.breach(
                "good row" if is_good else "whole answer", row, f"{status}: {text if status == 'ok' else error}"
            )
        if status == "ok" and not row.may_be_ok:
            report.breach("format off the list", row, row.kind)
        if status not in ("ok", "null_image", "error") or (status == "error" and stage not in _STATUSES[2:5]):
            report.breach("status", row, f"{status} {stage} {error}")
        if status == "error":
            n_stopped += "Decoding took longer" in str(error)
            if fault := _message_fault(error):
                report.breach("message", row, f"{fault}: {str(error)[:120]!r}")
    return n_stopped


def _message_fault(message: object) -> str:
    if not isinstance(message, str) or not message.strip():
        return "none"
    if len(message) > LONGEST_MESSAGE:
        return f"{len(message)} characters"
    # Escapes act on a terminal, breaks split a log's lines, and half characters cannot be written to a file.
    odd = {unicodedata.category(letter) for letter in message} & {"Cc", "Cs", "Zl", "Zp"}
    if odd:
        return f"characters of class {', '.join(sorted(odd))}"
    return "an address in memory" if " at 0x" in message else ""


def _judge_slow(runner: _Runner, rows: list[Row], report: Report) -> None:
    """Find the row that took long, by halves, and measure it alone."""
    culprit = _culprit(runner, rows, lambda part: runner.run(part).cpu_s > DECODE_S * 0.9, whole=False)
    if culprit is None:
        return
    seconds = min(runner.alone(culprit) for _ in range(2))
    if seconds > report.slowest_s:
        report.slowest_s, report.slowest = seconds, culprit.kind
    if seconds > DECODE_S + SLACK_S:
        report.breach("slow row", culprit, f"{seconds:.2f} s of CPU")


def _culprit(runner: _Runner, rows: list[Row], is_bad: Any, *, whole: bool = True) -> Row | None:
    """The row at fault, by halves; None where it takes several."""
    while len(rows) > 1:
        half = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        bad = next((part for part in half if is_bad(part)), None)
        if bad is None:
            return None
        rows = bad
    return rows[0] if rows and (not whole or is_bad(rows)) else None


def _judge_end(runner: _Runner, report: Report, before: tuple[int, int, int], most_bytes: int) -> None:
    deadline = time.monotonic() + 5
    while (after := _left())[2] > before[2] and time.monotonic() < deadline:
        time.sleep(0.05)
    for name, first, last, most in zip(
        ("files", "threads", "processes"), before, after, (MOST_LEFT, MOST_LEFT, 0), strict=True
    ):
        if last > first + most:
            report.breach("left behind", None, f"{last} open {name}, {first} before")
    if report.peak_bytes - report.clean_bytes > most_bytes:
        report.breach(
            "memory", None, f"{report.peak_bytes / 2**20:.0f} MiB, clean {report.clean_bytes / 2**20:.0f} MiB"
        )
        alone = runner.run([runner.good[0]]).peak_bytes
        taken = [(runner.run([runner.good[0], row]).peak_bytes - alone, row) for row in report.heaviest]
        for n_bytes, row in sorted(taken, key=lambda pair: -pair[0])[:5]:
            report.breach("memory", row, f"{n_bytes / 2**20:.0f} MiB alone")


def _left() -> tuple[int, int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(_children())


def _children() -> set[int]:
    found: set[int] = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended since
            found.update(map(int, (thread / "children").read_text().split()))
    return found


class PeakMemory:
    """The most memory that this process and its children held together, but for some of them.

    The kernel keeps each process's own peak, which is read and set back a hundred times a second:
    https://man7.org/linux/man-pages/man5/proc_pid_clear_refs.5.html
    """

    def __init__(self, others: frozenset[int] = frozenset()) -> None:
        self.peak = 0
        self._others, self._ended = others, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        _reset_peak("self")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._ended.wait(0.01)
            pids = ("self", *(str(pid) for pid in _children() - self._others if not _is_still_this_one(pid)))
            self.peak = max(self.peak, sum(map(_take_peak, pids)))


def _is_still_this_one(pid: int) -> bool:
    """Whether a child has not become another program yet, and shares all of its memory with its parent."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == Path("/proc/self/cmdline").read_bytes()
    except OSError:  # it has ended
        return True


def _take_peak(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            text = status.read()
        _reset_peak(pid)
    except OSError:  # it has ended
        return 0
    at = text.find(b"VmHWM:")
    return 0 if at < 0 else int(text[at + 6 : text.index(b"kB", at)]) * 1024


def _reset_peak(pid: str) -> None:
    with open(f"/proc/{pid}/clear_refs", "wb") as file:
        file.write(b"5")


def _told(error: BaseException | None) -> str:
    """The class of an exception and of what it came from, and where in the package it rose."""
    words = []
    while error is not None:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "qwenvl_kit" in frame.filename]
        place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        try:
            message = str(error)[:100]
        except Exception:  # noqa: BLE001  # some cannot be printed
            message = ""
        words.append(f"{type(error).__name__}: {message}{place}")
        error = error.__cause__ or error.__context__
    return " <- ".join(words)


def _print(report: Report, kind: str, seed: int) -> None:
    print(
        f"{kind}, seed {seed}: {report.n_odd} odd rows and {report.n_good} good ones in {report.seconds:.0f} s, "
        f"{(report.n_odd + report.n_good) / max(report.seconds, 1e-9):.0f} rows/s"
    )
    print(f"{'':32}" + "".join(f"{name:>11}" for name in ("rows", *_STATUSES)))
    total: Counter[str] = Counter()
    for name, counts in sorted(report.outcomes.items()):
        total.update(counts)
        print(f"{name[:31]:32}" + "".join(f"{n:>11}" for n in (sum(counts.values()), *(counts[s] for s in _STATUSES))))
    print(f"{'all':32}" + "".join(f"{n:>11}" for n in (total.total(), *(total[s] for s in _STATUSES))))
    print(
        f"ended for taking too long: {report.n_stopped}; slowest row {report.slowest_s:.2f} s of CPU ({report.slowest})"
    )
    over = (report.peak_bytes - report.clean_bytes) / 2**20
    print(f"peak memory {report.peak_bytes / 2**20:.0f} MiB with children, {over:.0f} over as many good rows")
    counts = Counter(breach.what for breach in report.breaches)
    print(f"breaches: {dict(counts) or 'none'}")
    shown: Counter[tuple[str, str]] = Counter()
    for breach in report.breaches:
        shown[breach.what, breach.detail[:60]] += 1
        if shown[breach.what, breach.detail[:60]] == 1:
            cell = "" if breach.row is None else f"{breach.row.kind}: {_shown(breach.row.cell)}"
            print(f"  {breach.what}: {breach.detail} [{cell}]")


def _shown(cell: object) -> str:
    try:
        return repr(cell)[:80]
    except Exception:  # noqa: BLE001  # that is what the cell is about
        return object.__repr__(cell)


def _save(report: Report, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, breach in enumerate(report.breaches):
        if breach.row is None:
            continue
        cell = breach.row.origin if breach.row.origin is not None else breach.row.cell
        stem = f"{name}-{breach.what.replace(' ', '_')}-{number}-{breach.row.kind.split()[0]}"
        if type(cell) in (bytes, bytearray):  # a lazy cell's own class may raise when it is asked
            (folder / f"{stem}.bin").write_bytes(cell)
        else:
            text = cell if type(cell) is str else f"{_shown(cell)}\n{breach.detail}"
            (folder / f"{stem}.txt").write_text(text, encoding="utf-8", errors="surrogatepass")


def main() -> int:
    """Fuzz, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=("files", "cells", "servers"), default="files")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no batch after so many")
    parser.add_argument("--save", type=Path)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow's, of what is opened to be given as a cell
    report = fuzz(asked.kind, asked.cases, asked.seed, n_batch=asked.batch, most_s=60 * asked.minutes)
    _print(report, asked.kind, asked.seed)
    if asked.save is not None:
        _save(report, asked.save, f"{asked.kind}-{asked.seed}")
    sys.stdout.flush()
    # What hangs would hang the interpreter's own end too.
    os._exit(1 if report.breaches else 0)


if __name__ == "__main__":
    main()
