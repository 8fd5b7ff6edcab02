"""``qwenvl-kit bench``: measure captions of synthetic images at several settings, and recommend one."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import qwenvl_kit
from qwenvl_kit.cli.options import add_options, config_of
from qwenvl_kit.errors import BackendFailed, ConfigError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from numpy.typing import NDArray

_NEAR_BEST = 0.95  # a smaller batch of nearly the same speed takes less memory


@dataclass(frozen=True, slots=True)
class Setting:
    """A measured setting: backend, model, CPU threads (None for the default) and batch size."""

    backend: str
    model_name: str
    threads: int | None
    batch_size: int

    def options(self) -> dict[str, Any]:
        """Return the setting as options of a call."""
        return {
            "backend": self.backend,
            "model_name": self.model_name,
            "threads": self.threads,
            "batch_size": self.batch_size,
        }

    def __str__(self) -> str:
        """Return the setting as keyword arguments."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options().items())


@dataclass(frozen=True, slots=True)
class Pace:
    """Rows and tokens per second of one setting; medians of the rounds."""

    setting: Setting
    rows_per_s: float
    tokens_per_s: float
    notes: tuple[str, ...] = ()


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("bench", help="find the fastest settings of this machine", description=__doc__)
    parser.add_argument("--sizes", type=_counts, default=(1, 4, 8, 16), help="batch sizes to try [1,4,8,16]")
    parser.add_argument("--thread-counts", type=_counts, help="CPU thread counts to try, such as 1,2,4")
    parser.add_argument("--export", metavar="DIR", help="an ONNX export of the model to compare")
    parser.add_argument("--images", "--pictures", type=_count, default=16, help="images per measurement [%(default)s]")
    parser.add_argument("--side", type=_count, default=448, help="side of the images in pixels [%(default)s]")
    parser.add_argument("--rounds", type=_count, default=2, help="measurements per setting, interleaved [%(default)s]")
    add_options(parser)
    parser.set_defaults(work=work)


def work(parsed: argparse.Namespace) -> int:
    """Measure and print."""
    config = config_of(parsed)
    if "batch_size" in config.explicit:
        raise ConfigError(
            "bench does not support --batch-size, because it tries several. Use --sizes, such as --sizes 1,4,8."
        )
    if "threads" in config.explicit and parsed.thread_counts:
        raise ConfigError("--threads and --thread-counts exclude each other. Pass only one of them.")
    models = [(config.backend, config.model_name), *([("onnx", parsed.export)] if parsed.export else [])]
    settings = [
        Setting(backend, model_name, threads, size)
        for backend, model_name in models
        for threads in parsed.thread_counts or (config.threads,)
        for size in parsed.sizes
    ]
    options = {name: getattr(config, name) for name in config.explicit} | {"progress": False}
    print(f"{config.model_name}: {parsed.images} images of {parsed.side} pixels per measurement")
    paces = measure(settings, parsed.images, parsed.side, parsed.rounds, options)
    print("backend  threads  batch_size  images/s  tokens/s")
    for pace in paces:
        tried = pace.setting
        print(
            f"{tried.backend:7}  {tried.threads or 'auto':>7}  {tried.batch_size:10}  {pace.rows_per_s:8.3g}  "
            f"{pace.tokens_per_s:8.3g}"
        )
    for note in dict.fromkeys(note for pace in paces for note in pace.notes):
        print(f"  {note}")
    print(f"Set {advise(paces)}.")
    return 0


def measure(
    settings: Sequence[Setting], n_images: int, side: int, n_rounds: int, options: dict[str, Any]
) -> list[Pace]:
    """Measure the settings in interleaved rounds, so that other load affects all of them."""
    images = _images(side)
    for setting in settings:  # load the models before measuring
        pd.Series([next(images)]).vl.run(**_joined(options, setting))
    tries: dict[Setting, list[tuple[float, float, tuple[str, ...]]]] = {setting: [] for setting in settings}
    for _ in range(n_rounds):
        for setting in settings:
            cells = pd.Series([next(images) for _ in range(n_images)])  # new images: known ones are cached
            started = time.perf_counter()
            done = cells.vl.run(**_joined(options, setting))
            seconds = time.perf_counter() - started
            if not (done["status"] == "ok").all():
                raise BackendFailed(f"Rows failed with {setting}: {done['error'].dropna().iloc[0]}")
            notes = tuple(note for note in done.attrs["effective"]["notes"] if "Out of memory" in note)
            tries[setting].append((n_images / seconds, float(done["new_tokens"].sum()) / seconds, notes))
    qwenvl_kit.unload()
    return [
        Pace(
            setting,
            statistics.median(rows for rows, _, _ in some),
            statistics.median(tokens for _, tokens, _ in some),
            some[-1][2],
        )
        for setting, some in tries.items()
    ]


def advise(paces: Sequence[Pace]) -> Setting:
    """Return the setting of the smallest batch among the nearly fastest ones.

    Examples
    --------
    >>> paces = [(1, 1.0), (4, 1.97), (8, 2.0)]
    >>> advise([Pace(Setting("torch", "demo", None, size), pace, 9 * pace) for size, pace in paces]).batch_size
    4
    """
    fastest = max(pace.rows_per_s for pace in paces)
    near = [pace for pace in paces if pace.rows_per_s >= _NEAR_BEST * fastest]
    return min(near, key=lambda pace: (pace.setting.batch_size, pace.setting.threads or 0, -pace.rows_per_s)).setting


def _joined(options: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """Return the options of a setting, without those that an export fixes."""
    decided = ("dtype",) if setting.backend == "onnx" else ()
    return {name: value for name, value in options.items() if name not in decided} | setting.options()


def _images(side: int) -> Iterator[NDArray[np.uint8]]:
    """Yield distinct images of coloured squares, endlessly."""
    draw = np.random.default_rng(0)
    cell = -(-side // 8)
    while True:
        coarse = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        yield np.kron(coarse, np.ones((cell, cell, 1), dtype=np.uint8))[:side, :side]


def _counts(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_count(part) for part in text.split(",")))


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is invalid. Use an integer of at least 1.")
    return number
