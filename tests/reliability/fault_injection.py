"""Raise an exception at every call of a library on a row's way, one at a time, as SQLite does for memory and I/O.

https://www.sqlite.org/testing.html#anomaly_testing. The calls are not listed by hand: a profile function sees each call
that ``qwenvl_kit/images`` makes into a library, and can raise in its place. So new code is covered as it is written.

Run it by hand for all faults at all calls, and at any call *inside* the libraries:
``python tests/reliability/fault_injection.py --deep 5000``.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import base64

import numpy as np
import pandas as pd
from helpers.fake_backends import within
from helpers.malformed_inputs import encoded, noise
from helpers.malformed_inputs.answers import image_of, serve
from helpers.malformed_inputs.cells import OddError
from PIL import Image, features

import qwenvl_kit
import qwenvl_kit.images

ECHO: dict[str, Any] = {"backend": "echo", "progress": False, "timeout_s": 5.0}
HANGS_S = 60.0
N_ROWS = 5

FAULTS: dict[str, Callable[[], Exception]] = {
    "MemoryError": MemoryError,
    "EMFILE": lambda: OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    "no thread": lambda: RuntimeError("can't start new thread"),
    "OSError": lambda: OSError("an odd fault"),
    "OverflowError": lambda: OverflowError("an odd fault"),
    "ValueError": lambda: ValueError("an odd fault"),
    "KeyError": lambda: KeyError("odd"),
    "AttributeError": lambda: AttributeError("an odd fault"),
    "NotImplementedError": lambda: NotImplementedError("an odd fault"),
    "AssertionError": lambda: AssertionError("an odd fault"),
    "RecursionError": lambda: RecursionError("an odd fault"),
    "UnicodeError": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "an odd fault"),
    "StopIteration": lambda: StopIteration("an odd fault"),
    "OddError": OddError,
}
"""Makers of what a library may raise."""

_PACKAGE = str(Path(qwenvl_kit.images.__file__).parent) + os.sep
# Locks, clocks and context managers are the language's own: a release that raised would leave any program waiting.
_SPARED = {"threading", "_thread", "contextlib", "time", "typing", "dataclasses", "functools", "queue", "weakref",
"abc", "types", "_abc",
           "collections", "_collections", "collections.abc", "_weakref", "_weakrefset", "gc", "sys", "warnings",
           "_warnings", "logging", "traceback",
           "copyreg", "enum", "linecache", "atexit", "signal", "selectors", "select", "concurrent", "itertools",
           "operator",
           "_functools", "_operator", "reprlib"}  # fmt: skip
_NEVER_FAIL = {"posix.getpid", "nt.getpid"}  # https://man7.org/linux/man-pages/man2/getpid.2.html#ERRORS
_HOLDERS = (str, bytes, bytearray, memoryview)  # builtin types whose methods allocate, encode and decode


@dataclass(frozen=True, order=True)
class Site:
    """A call: in which file and line of the package, and of what."""

    file: str
    line: int
    callee: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.callee}"


@dataclass
class Injector:
    """Sees calls on the rows' way, and raises once in the place of one of them.

    Attributes
    ----------
    site : Site or None
        Where to raise; None only to see.
    nth : int
        At which of the site's calls; with `deep`, at which of all.
    deep : bool
        See the calls inside the libraries too.
    """

    site: Site | None = None
    nth: int = 0
    fault: Callable[[], BaseException] = ValueError
    deep: bool = False
    seen: dict[Site, int] = field(default_factory=dict)
    n_seen: int = 0
    raised: Site | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[Injector]:
        """Watch the threads that are started within."""
        threading.setprofile(self._profile)
        try:
            yield self
        finally:
            threading.setprofile(None)

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_call":
            module = getattr(arg, "__module__", None)
            owner = getattr(arg, "__self__", None)
            if module is None:
                module = type(owner).__module__
            if module == "builtins" and type(owner) not in _HOLDERS:
                return
            self._see(frame, module, arg.__qualname__)
        elif event == "call" and frame.f_back is not None:
            if frame.f_code.co_filename.startswith("<"):  # made by dataclasses
                return
            module = frame.f_globals.get("__name__") or ""
            if not module.startswith("qwenvl_kit") and module != __name__ and not frame.f_code.co_flags & 0x20:
                self._see(frame.f_back, module, frame.f_code.co_qualname)

    def _see(self, caller: FrameType, module: str, callee: str) -> None:
        if module.partition(".")[0] in _SPARED or module in _SPARED or f"{module}.{callee}" in _NEVER_FAIL:
            return
        place: FrameType | None = caller
        if self.deep:
            while place is not None and not place.f_code.co_filename.startswith(_PACKAGE):
                name = place.f_globals.get("__name__") or ""
                # A module that is imported by halves is every program's end.
                if name.startswith("importlib") or name.partition(".")[0] in _SPARED:
                    return
                place = place.f_back
        if place is None or not place.f_code.co_filename.startswith(_PACKAGE) or not _is_on_a_rows_way(place):
            return
        site = Site(place.f_code.co_filename.removeprefix(_PACKAGE), place.f_lineno, f"{module}.{callee}")
        with self._lock:
            n_before = self.n_seen if self.deep else self.seen.get(site, 0)
            self.seen[site] = self.seen.get(site, 0) + 1
            self.n_seen += 1
            is_due = (
                self.raised is None and n_before == self.nth and ((self.deep and self.nth >= 0) or site == self.site)
            )
            if not is_due:
                return
            self.raised = site
        raise self.fault()


def _is_on_a_rows_way(frame: FrameType) -> bool:
    """Whether one row is being identified, fetched, decoded or resized; not where a run begins or ends."""
    name = threading.current_thread().name
    if name.startswith("qwenvl_kit-"):
        return "watch" not in name and "backend" not in name and not _is_set_up(frame)
    place: FrameType | None = frame
    while place is not None:
        if place.f_code.co_name == "classify":
            return True
        place = place.f_back
    return False


def _is_set_up(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name in ("close_idle", "after_fork"):
            return True
        frame = frame.f_back
    return False


class Hangs(Exception):
    """A run did not end; what it holds would let all later ones wait too."""


@dataclass
class Column:
    """Five rows that take one way, and what becomes of them when nothing is wrong."""

    name: str
    cells: list[object]
    options: dict[str, Any] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    def run(self) -> pd.DataFrame:
        """Run the rows; fail, instead of hanging, when that takes too long."""
        made = np.empty(len(self.cells), dtype=object)
        for number, cell in enumerate(self.cells):
            made[number] = cell
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return within(HANGS_S, lambda: pd.Series(made, dtype=object).vl.run(**{**ECHO, **self.options}))

    def prepare(self) -> None:
        """Run once without a fault, so that modules are loaded and texts known."""
        for _ in range(2):
            frame = self.run()
            assert frame["status"].tolist() == ["ok"] * len(self.cells), frame["error"].tolist()
        self.texts = frame["text"].tolist()

    def sites(self) -> dict[Site, int]:
        """The calls that there are, and how often each is made."""
        with Injector().at_work() as seen:
            self.run()
        return dict(sorted(seen.seen.items()))

    def judge(self, injector: Injector, name: str) -> str | None:
        """Run with a fault; None where all is right, else what is not."""
        where = f"{self.name}, {name} at {injector.site or injector.nth}: "
        try:
            with injector.at_work():
                frame = self.run()
        except BaseException as error:  # it is the finding
            if isinstance(error, AssertionError) and "still at work" in str(error):
                raise Hangs(f"{where}{injector.raised}: {error}") from error
            cause = error.__cause__ or error
            return f"{where}{injector.raised}: out of run() came {type(error).__name__} from {type(cause).__name__}"
        if injector.raised is None:
            return None  # this run took another way, such as a kept connection
        wrong = frame.index[(frame["status"] != "ok") | (frame["text"] != pd.Series(self.texts))].tolist()
        if len(wrong) > 1:
            return f"{where}{injector.raised}: {len(wrong)} rows failed: {frame['error'].tolist()}"
        for row in wrong:
            status, stage, error = frame.loc[row, ["status", "stage", "error"]]
            if status != "error":
                return f"{where}{injector.raised}: row {row} is {status} {frame.loc[row, 'text']!r}"
            if stage not in ("fetch", "decode", "resize"):
                return f"{where}{injector.raised}: stage {stage}"
            if not injector.deep and not is_told(injector.fault(), str(error)):
                return f"{where}{injector.raised}: the message does not name it: {error!r}"
        return None


def is_told(fault: BaseException, message: str) -> bool:
    """Whether a row's message says what the library raised."""
    words = [type(fault).__name__]
    if isinstance(fault, AttributeError):
        words.append("TypeError")  # what NumPy makes of an image without its interface
    if isinstance(fault, StopIteration):
        words.append("RuntimeError")  # what Python makes of it inside a generator
    if isinstance(fault, MemoryError):
        words.append("memory")
    if isinstance(fault, OSError | ValueError):  # whose own words are for people
        words.append(getattr(fault, "strerror", None) or "an odd fault")
    return any(word.lower() in message.lower() for word in words)


@contextlib.contextmanager
def columns() -> Iterator[list[Column]]:
    """All ways that a row may take, five rows each."""
    images = [noise(24, 20 + number, number) for number in range(N_ROWS)]
    quick = [encoded(image, form) for image, form in zip(images, ("PNG", "JPEG", "WEBP", "GIF", "BMP"), strict=True)]
    jpegs = [encoded(image, "JPEG") for image in images]
    pngs = [encoded(image, "PNG") for image in images]
    slow = [encoded(image, form) for image, form in zip(images, _slow_forms(), strict=True)]
    exif = Image.Exif()
    exif[0x0112] = 6
    with tempfile.TemporaryDirectory() as folder, serve(0, 0) as (addresses, _):
        paths = []
        for number, data in enumerate(pngs):
            paths.append(str(Path(folder, f"{number}.png")))
            Path(paths[-1]).write_bytes(data)
        addresses_of_images = [f"{addresses[0]}/good{number}" for number in range(N_ROWS)]
        _put_in_memory(pngs)
        made = [
            Column("quick bytes", list(quick)),
            Column("slow bytes", list(slow)),
            Column("drafts", list(jpegs), {"image_decode": "draft"}),
            Column(
                "odd modes",
                [
                    encoded(images[0].convert("RGBA"), "PNG"),
                    encoded(images[1].convert("P"), "PNG", transparency=3),
                    encoded(Image.fromarray(np.full((20, 20), 9000, np.uint16)), "PNG"),
                    encoded(images[3].convert("CMYK"), "JPEG"),
                    encoded(images[4], "JPEG", exif=exif),
                ],
            ),
            Column("paths", list(paths)),
            Column("file addresses", [f"file://{path}" for path in paths]),
            Column("base64", [base64.b64encode(data).decode() for data in pngs]),
            Column("data addresses", ["data:image/png;base64," + base64.b64encode(data).decode() for data in pngs]),
            Column("http", list(addresses_of_images)),
            Column("fsspec", [f"memory://{number}.png" for number in range(N_ROWS)], {"extra_schemes": ("memory",)}),
            Column("images", list(images)),
            Column("open images", [Image.open(path) for path in paths]),
            Column(
                "arrays",
                [*(np.asarray(image) for image in images[:3]), np.zeros((9, 9, 4)), np.zeros((9, 9), np.uint16)],
            ),
            Column("several", [[data, path, {"bytes": data}] for data, path in zip(pngs, paths, strict=True)]),
            Column("known paths", list(paths), {"store": f"{folder}/paths.db"}),
            Column("known addresses", list(addresses_of_images), {"store": f"{folder}/addresses.db"}),
        ]
        assert image_of(0) != image_of(1)
        yield made


def _slow_forms() -> tuple[str, ...]:
    wanted = (("AVIF", "avif"), ("JPEG2000", "jpg_2000"), ("TIFF", "zlib"), ("ICO", "zlib"), ("TIFF", "zlib"))
    return tuple(form if features.check(feature) else "TIFF" for form, feature in wanted)


def _put_in_memory(files: Sequence[bytes]) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for number, data in enumerate(files):
        memory.pipe_file(f"/{number}.png", data)


def sweep(column: Column, *, n_faults: int | None = None, nths: int = 1) -> tuple[int, list[str]]:
    """Raise at every call of a column's way; how often, and what was not right.

    Parameters
    ----------
    n_faults : int or None
        So many of `FAULTS` at each call, in turn; None for all of them.
    nths : int
        So many of the calls of each site.
    """
    names = list(FAULTS)
    wrong: list[str] = []
    n_runs, first = 0, len(column.name)  # so that columns with calls in common do not meet the same faults
    for number, (site, n_calls) in enumerate(column.sites().items(), start=first):
        some = names if n_faults is None else [names[(number * n_faults + k) % len(names)] for k in range(n_faults)]
        for name in some:
            for nth in range(min(nths, n_calls)):
                n_runs += 1
                fault = column.judge(Injector(site, nth, FAULTS[name]), name)
                if fault is not None:
                    wrong.append(fault)
    return n_runs, wrong


def sweep_deep(column: Column, n_runs: int, seed: int) -> list[str]:
    """Raise at any call inside the libraries, at random."""
    chance = random.Random(seed)
    with Injector(nth=-1, deep=True).at_work() as seen:
        column.run()
    wrong = []
    for _ in range(n_runs):
        name = chance.choice(list(FAULTS))
        injector = Injector(None, chance.randrange(max(1, seen.n_seen)), FAULTS[name], deep=True)
        fault = column.judge(injector, name)
        if fault is not None:
            wrong.append(fault)
    return wrong


def main() -> int:
    """Sweep, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--column", help="only this one")
    parser.add_argument("--faults", type=int, help="so many at each call (default: all)")
    parser.add_argument("--nths", type=int, default=2, help="so many calls of each site")
    parser.add_argument("--deep", type=int, default=0, help="faults inside the libraries, for each column")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    wrong: list[str] = []
    with columns() as made:
        for column in made:
            if asked.column is not None and column.name != asked.column:
                continue
            started = time.perf_counter()
            column.prepare()
            try:
                n_runs, faults = sweep(column, n_faults=asked.faults, nths=asked.nths)
                deep = sweep_deep(column, asked.deep, asked.seed)
            except Hangs as hangs:
                wrong.append(str(hangs))
                break
            wrong += faults + deep
            print(
                f"{column.name:18}{len(column.sites()):5} calls{n_runs:7} faults{len(faults):6} wrong"
                f"{asked.deep:7} deep{len(deep):6} wrong{time.perf_counter() - started:7.0f} s",
                flush=True,
            )
    for fault in wrong:
        print(" ", fault)
    sys.stdout.flush()
    os._exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
