"""``qwenvl-kit bench``: captions drawn pictures with your model, here, at a few batch sizes; says what to set."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
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

_NEAR_BEST = 0.95  # a smaller batch that is this near to the fastest is the better one: it takes less memory


@dataclass(frozen=True, slots=True)
class Pace:
    """Rows and tokens per second at one batch size; medians of the rounds."""

    batch_size: int
    rows_per_s: float
    tokens_per_s: float
    notes: tuple[str, ...]


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("bench", help="see which batch size is fastest here", description=__doc__)
    parser.add_argument("--sizes", type=_sizes, default=(1, 4, 8, 16), help="batch sizes to try [1,4,8,16]")
    parser.add_argument("--pictures", type=_count, default=16, help="pictures for each try [%(default)s]")
    parser.add_argument("--side", type=_count, default=448, help="their side in pixels [%(default)s]")
    parser.add_argument("--rounds", type=_count, default=2, help="how often each is tried, in turn [%(default)s]")
    add_options(parser)
    parser.set_defaults(work=work)


def work(parsed: argparse.Namespace) -> int:
    """Measure and print."""
    config = config_of(parsed)
    if "batch_size" in config.asked:
        raise ConfigError("bench tries several batch sizes; pass them as --sizes, such as --sizes 1,4,8")
    options: dict[str, Any] = {name: getattr(config, name) for name in config.asked} | {"progress": False}
    print(f"{config.model_name} on {config.backend}: {parsed.pictures} pictures of {parsed.side} pixels for each try")
    paces = measure(parsed.sizes, parsed.pictures, parsed.side, parsed.rounds, options)
    print("batch_size  pictures/s  tokens/s")
    for pace in paces:
        print(f"{pace.batch_size:10}  {pace.rows_per_s:10.3g}  {pace.tokens_per_s:8.3g}")
    for note in dict.fromkeys(note for pace in paces for note in pace.notes):
        print(f"  {note}")
    print(f"Set batch_size={advise(paces)}.")
    return 0


def measure(sizes: tuple[int, ...], n_pictures: int, side: int, n_rounds: int, options: dict[str, Any]) -> list[Pace]:
    """Try each batch size in turn, so that whatever else the machine does meets all of them."""
    pictures = _pictures(side)
    pd.Series([next(pictures)]).vl.run(**options, batch_size=1)  # the model is loaded before time counts
    tries: dict[int, list[tuple[float, float, tuple[str, ...]]]] = {size: [] for size in sizes}
    for _ in range(n_rounds):
        for size in sizes:
            cells = pd.Series([next(pictures) for _ in range(n_pictures)])  # new ones: what was seen costs less
            started = time.perf_counter()
            done = cells.vl.run(**options, batch_size=size)
            seconds = time.perf_counter() - started
            if not (done["status"] == "ok").all():
                raise BackendFailed(f"rows failed at batch_size={size}: {done['error'].dropna().iloc[0]}")
            notes = tuple(note for note in done.attrs["effective"]["notes"] if "memory ran out" in note)
            tries[size].append((n_pictures / seconds, float(done["new_tokens"].sum()) / seconds, notes))
    qwenvl_kit.unload()
    return [
        Pace(
            size,
            statistics.median(rows for rows, _, _ in some),
            statistics.median(tokens for _, tokens, _ in some),
            some[-1][2],
        )
        for size, some in tries.items()
    ]


def advise(paces: list[Pace]) -> int:
    """The smallest batch size that is nearly as fast as the fastest.

    Examples
    --------
    >>> advise([Pace(1, 1.0, 9.0, ()), Pace(4, 1.97, 18.0, ()), Pace(8, 2.0, 18.0, ())])
    4
    """
    fastest = max(pace.rows_per_s for pace in paces)
    return min(pace.batch_size for pace in paces if pace.rows_per_s >= _NEAR_BEST * fastest)


def _pictures(side: int) -> Iterator[NDArray[np.uint8]]:
    """Endless distinct pictures of coloured squares."""
    draw = np.random.default_rng(0)
    cell = -(-side // 8)
    while True:
        coarse = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        yield np.kron(coarse, np.ones((cell, cell, 1), dtype=np.uint8))[:side, :side]


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_count(part) for part in text.split(",")))


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {text}")
    return number
