"""``qwenvl-kit bench``: measure captions of synthetic images at several settings, and recommend one."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qwenvl_kit.cli.options import add_options, config_of
from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from qwenvl_kit.cli.bench_runs import Pace, Setting
    from qwenvl_kit.options import Config

_NEAR_BEST = 0.95  # a smaller batch of nearly the same speed takes less memory
_SIZES = {"cpu": (1, 4, 8, 16), "cuda": (1, 4, 16, 32, 64, 128, 256)}
_N_IMAGES = 16


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("bench", help="find the fastest settings of this machine", description=__doc__)
    sizes = "batch sizes to try [1,4,8,16; on CUDA up to 256]"
    parser.add_argument("--sizes", type=_counts, help=sizes)
    parser.add_argument("--thread-counts", type=_counts, help="CPU thread counts to try, such as 1,2,4")
    parser.add_argument("--export", metavar="DIR", help="an ONNX export of the model to compare")
    images = "images per measurement [16; on CUDA twice the batch size]"
    parser.add_argument("--images", "--pictures", type=_count, help=images)
    parser.add_argument("--side", type=_count, default=448, help="side of the images in pixels [%(default)s]")
    parser.add_argument("--rounds", type=_count, default=2, help="measurements per setting, interleaved [%(default)s]")
    parser.add_argument(
        "--budget", type=_count, default=300, metavar="SECONDS", help="end after this time [%(default)s]"
    )
    add_options(parser)
    parser.set_defaults(work=work)


def work(parsed: argparse.Namespace) -> int:
    """Measure and print; the status is 1 where the budget did not suffice for any figure."""
    config = config_of(parsed)
    if "batch_size" in config.explicit:
        raise ConfigError(
            "bench does not support --batch-size, because it tries several. Use --sizes, such as --sizes 1,4,8."
        )
    if "threads" in config.explicit and parsed.thread_counts:
        raise ConfigError("--threads and --thread-counts exclude each other. Pass only one of them.")
    started = time.perf_counter()
    _say(f"{config.model_name}: images of {parsed.side} pixels, for at most {parsed.budget} s")
    paces = _measure(parsed, config, started)
    if not paces:
        _say("No pass ended within the budget. Pass a larger --budget.")
        return 1
    _say("backend  threads  batch_size  images/s  tokens/s")
    for pace in paces:
        tried = pace.setting
        _say(
            f"{tried.backend:7}  {tried.threads or 'auto':>7}  {tried.batch_size:10}  {pace.rows_per_s:8.3g}  "
            f"{pace.tokens_per_s:8.3g}{'' if pace.is_measured else '  computed from the times of passes'}"
        )
    for note in dict.fromkeys(note for pace in paces for note in pace.notes):
        _say(f"  {note}")
    _say(f"Set {advise(paces)}.")
    return 0


def advise(paces: Sequence[Pace]) -> Setting:
    """Return the setting of the smallest batch among the nearly fastest ones; of measured ones, where there are any.

    Examples
    --------
    >>> from qwenvl_kit.cli.bench_runs import Pace, Setting
    >>> paces = [(1, 1.0), (4, 1.97), (8, 2.0)]
    >>> advise([Pace(Setting("torch", "demo", None, size), pace, 9 * pace) for size, pace in paces]).batch_size
    4
    """
    paces = [pace for pace in paces if pace.is_measured] or paces
    fastest = max(pace.rows_per_s for pace in paces)
    near = [pace for pace in paces if pace.rows_per_s >= _NEAR_BEST * fastest]
    return min(near, key=lambda pace: (pace.setting.batch_size, pace.setting.threads or 0, -pace.rows_per_s)).setting


def _measure(parsed: argparse.Namespace, config: Config, started: float) -> list[Pace]:
    """Return the paces of all settings, one model and number of threads after the other."""
    import qwenvl_kit
    from qwenvl_kit.cli.bench_runs import Budget, ModelBench, Setting  # brings pandas and the pipeline

    models = [(config.backend, config.model_name), *([("onnx", parsed.export)] if parsed.export else [])]
    loads = [(*model, threads) for model in models for threads in parsed.thread_counts or (config.threads,)]
    options: dict[str, Any] = {name: getattr(config, name) for name in config.explicit} | {"progress": False}
    is_cuda = _is_on_cuda(config)
    sizes = parsed.sizes or _SIZES["cuda" if is_cuda else "cpu"]
    budget, paces = Budget(parsed.budget, started), list[Any]()
    for at, load in enumerate(loads):
        bench = ModelBench(
            options,
            [Setting(*load, size) for size in sizes],
            Budget(budget.left_s / (len(loads) - at)),
            side=parsed.side,
            n_images=lambda size: parsed.images or (max(_N_IMAGES, 2 * size) if is_cuda else _N_IMAGES),
            say=lambda line: _say(f"  {line}"),
        )
        paces += bench.measure(parsed.rounds)
    qwenvl_kit.unload()
    return paces


def _is_on_cuda(config: Config) -> bool:
    if config.backend != "torch":
        return False
    from qwenvl_kit.checkpoints.devices import find_device

    return find_device(config.model).is_cuda


def _say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_count(part) for part in text.split(",")))


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is invalid. Use an integer of at least 1.")
    return number
