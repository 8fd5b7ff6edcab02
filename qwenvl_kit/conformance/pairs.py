"""Compare two engines, or two settings of one, on a checkpoint: agreement and KL divergence image by image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from qwenvl_kit.conformance.agreement import common_length
from qwenvl_kit.demo.scenes import LARGE_WORLD, draw, sample_scenes
from qwenvl_kit.errors import ConfigError, OptionWarning
from qwenvl_kit.executors.local import execute
from qwenvl_kit.options import Config

if TYPE_CHECKING:
    from qwenvl_kit.types import Result

_N_ALTERNATIVES = 20  # what vLLM gives at most by default
_N_SCENES = 16
_OWN = ("logprobs", "engine", "concurrency", "num_gpus", "store")


def compare_engines(
    images: Sequence[object] | None, options: dict[str, Any], against: Mapping[str, object], *, scene_seed: int = 0
) -> pd.DataFrame:
    """Ask two engines the same, and compare their answers.

    Returns
    -------
    DataFrame
        A row per image: `text` and `text_against`; `same_text`; tokens before the answers part (`common_tokens`); `kl`,
        the mean Kullback-Leibler divergence of the two distributions in nats over the places where both have read the
        same, from the 20 likeliest tokens (a lower bound); and the largest difference of log-probabilities there. A row
        that failed has its error. ``attrs["agreement"]`` is the share of equal texts, ``attrs["kl"]`` the mean.

    Raises
    ------
    ConfigError
        `against` changes nothing, or an option is set that belongs to this comparison.

    Examples
    --------
    >>> frame = compare_engines(["?"], {"backend": "echo", "progress": False}, {"prompt": "What?"})
    >>> frame["same_text"].tolist()
    [False]
    """
    taken = sorted({*options, *against} & {*_OWN})
    if taken:
        raise ConfigError(f"conform sets {', '.join(taken)} itself. Leave it out.")
    first = Config(**options, logprobs=_N_ALTERNATIVES)
    second = first.replace(**against)  # type: ignore[arg-type]  # names are checked there
    if first == second:
        raise ConfigError("against={…} changes no option, so there is nothing to compare. Pass another value in it.")
    cells: Sequence[object] = images if images is not None else _scenes(scene_seed)
    pairs = list(zip(_ask(cells, first), _ask(cells, second), strict=True))
    frame = pd.DataFrame([_row(one, other) for one, other in pairs])
    agreement = float(frame["same_text"].mean()) if len(frame) else math.nan
    frame.attrs = {"agreement": agreement, "kl": float(frame["kl"].mean()) if len(frame) else math.nan}
    return frame


def divergence(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Return the divergence of two distributions of which only the likeliest tokens are known, in nats.

    Tokens that are not known of both count as one, so it is a lower bound (the log sum inequality).

    Examples
    --------
    >>> round(divergence({"a": math.log(0.5), "b": math.log(0.5)}, {"a": math.log(0.25), "b": math.log(0.75)}), 4)
    0.1438
    """
    both = [token for token in one if token in other and one[token] > -math.inf]
    known = sum(math.exp(one[token]) * (one[token] - other[token]) for token in both)
    left, left_other = (max(0.0, 1 - sum(math.exp(of[token]) for token in both)) for of in (one, other))
    rest = left * (math.log(left) - math.log(left_other)) if left > 1e-9 and left_other > 1e-9 else 0.0
    return max(0.0, known + rest)


def _scenes(seed: int) -> list[object]:
    return [draw(scene) for scene in sample_scenes(_N_SCENES, seed=seed, world=LARGE_WORLD)]


def _ask(cells: Sequence[object], config: Config) -> Sequence[Result]:
    with warnings.catch_warnings():  # of an engine without log-probabilities; its `kl` is missing
        warnings.filterwarnings("ignore", "logprobs=", OptionWarning)
        run = execute(cells, [config.prompt] * len(cells), config)
    if run.failure is not None:
        raise run.failure
    return run.results


def _row(one: Result, other: Result) -> dict[str, Any]:
    n_common = common_length(one.text or "", other) if other.status == one.status == "ok" else 0
    places = list(zip(_distributions(one), _distributions(other), strict=False))[: n_common + 1]
    chosen = list(zip(one.token_logprobs or (), other.token_logprobs or (), strict=False))[:n_common]
    return {
        "text": one.text,
        "text_against": other.text,
        "same_text": one.status == other.status == "ok" and one.text == other.text,
        "common_tokens": n_common,
        "kl": sum(divergence(*pair) for pair in places) / len(places) if places else math.nan,
        "logprob_difference": max((abs(a - b) for a, b in chosen), default=math.nan),
        "error": one.error or other.error,
    }


def _distributions(result: Result) -> list[dict[str, float]]:
    """Return the log-probabilities of the likeliest tokens in each place."""
    texts, logprobs = result.alternative_texts or (), result.alternative_logprobs or ()
    n_places = len(result.token_logprobs or ())
    n = len(texts) // n_places if n_places else 0
    return [dict(zip(texts[at : at + n], logprobs[at : at + n], strict=True)) for at in range(0, n * n_places, n or 1)]
