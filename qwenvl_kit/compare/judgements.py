"""Human preferences between the answers of two settings: what is asked, what was said, and what follows from it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd

from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

Verdict = Literal["reference", "other", "tie", "skip"]
_START = '{"key": "'  # of each line
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two different answers about one image.

    Attributes
    ----------
    key : str
        Equal for the same image, settings and answers, so that judgements of two people, or of two sessions, meet.
    row : int
        Position of the image.
    label : str
        Its index label.
    reference, other : str
        The settings, such as ``resized_height=56``.
    reference_text, other_text : str
        Their answers.
    is_swapped : bool
        The answer of `other` is shown first.
    """

    key: str
    row: int
    label: str
    reference: str
    other: str
    reference_text: str
    other_text: str
    is_swapped: bool

    @property
    def shown(self) -> tuple[str, str]:
        """The two answers in the order in which they are shown."""
        texts = (self.reference_text, self.other_text)
        return texts[::-1] if self.is_swapped else texts

    def verdict(self, place: int) -> Verdict:
        """Return the verdict that prefers the first (0) or second (1) answer shown."""
        return "other" if (place == 0) == self.is_swapped else "reference"


def make_pairs(
    frame: pd.DataFrame, varied: Sequence[str], reference: Mapping[str, object], *, seed: int
) -> tuple[list[Pair], pd.Series]:
    """Return the pairs of different answers in an order shuffled by the seed, and the number of equal ones.

    Parameters
    ----------
    frame, varied, reference
        Of a `Comparison`.
    seed : int
        Shuffles the pairs, and which of the two answers is shown first.

    Returns
    -------
    list of Pair
        One per image, repeat and setting other than its reference, where both have an answer and the two differ.
    Series of int
        Pairs of equal answers, by the name of the other setting; nobody needs to judge them.
    """
    answers: dict[tuple[str, int, int], tuple[str, str]] = {}
    names: dict[str, str] = {}
    for record in frame[frame["status"] == "ok"].to_dict("records"):
        values = {name: record[name] for name in varied}
        name = _name(values)
        names.setdefault(name, _name({**values, **reference}))
        answers[name, record["row"], record["repeat"]] = (record["text"], str(record["label"]))
    rng = np.random.default_rng(seed)
    pairs: list[Pair] = []
    n_equal = dict.fromkeys((name for name, against in names.items() if name != against), 0)
    for (name, row, repeat), (text, label) in answers.items():
        against = answers.get((names[name], row, repeat))
        if name == names[name] or against is None:
            continue
        if against[0] == text:
            n_equal[name] += 1
            continue
        key = _digest(label, row, repeat, names[name], name, against[0], text)
        swapped = bool(rng.random() < 0.5)
        pairs.append(Pair(key, row, label, names[name], name, against[0], text, swapped))
    return [pairs[at] for at in rng.permutation(len(pairs))], pd.Series(n_equal, dtype="int64")


def win_rates(judged: pd.DataFrame, n_equal: pd.Series, level: float = 0.95) -> pd.DataFrame:
    """Return how often each setting was preferred to its reference.

    Parameters
    ----------
    judged : DataFrame
        Columns ``other`` and ``verdict``, a row per judgement.
    n_equal : Series
        Pairs of equal answers by setting.
    level : float
        Coverage of the interval, in (0, 1).

    Returns
    -------
    DataFrame
        By setting: ``wins``, ``losses``, ``ties``, ``skipped``, ``equal``; ``win_rate``, wins among wins and losses,
        with its Wilson interval (Wilson 1927, https://doi.org/10.2307/2276774) ``low`` and ``high``; and ``p`` of a
        two-sided sign test that both are preferred equally often. Missing where nothing was decided.

    Examples
    --------
    >>> judged = pd.DataFrame({"other": ["b"] * 4, "verdict": ["other", "other", "other", "reference"]})
    >>> win_rates(judged, pd.Series({"b": 0}))[["wins", "losses", "win_rate"]].to_dict("records")
    [{'wins': 3, 'losses': 1, 'win_rate': 0.75}]
    """
    if not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1; got {level!r}. Pass 0.95 for 95 % intervals.")
    rows = {}
    for name in n_equal.index:
        said = judged["verdict"][judged["other"] == name]
        wins, losses, ties, skipped = (int((said == one).sum()) for one in ("other", "reference", "tie", "skip"))
        low, high = wilson_interval(wins, wins + losses, level)
        rate = wins / (wins + losses) if wins + losses else math.nan
        counts = {"wins": wins, "losses": losses, "ties": ties, "skipped": skipped, "equal": int(n_equal[name])}
        rows[name] = {**counts, "win_rate": rate, "low": low, "high": high, "p": sign_test(wins, losses)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")


def wilson_interval(n_wins: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a share; NaN for ``n == 0``.

    Examples
    --------
    >>> [round(end, 3) for end in wilson_interval(8, 10)]
    [0.49, 0.943]
    """
    if not n:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, slack = n_wins / n, z * z / n
    middle = (share + slack / 2) / (1 + slack)
    half = z / (1 + slack) * math.sqrt(share * (1 - share) / n + slack / (4 * n))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return 0.0 if n_wins == 0 else low, 1.0 if n_wins == n else high  # where rounding leaves 1e-17


def sign_test(n_wins: int, n_losses: int) -> float:
    """Return the exact two-sided p-value that wins and losses are equally likely; NaN without any.

    Examples
    --------
    >>> sign_test(5, 0)
    0.0625
    """
    n, most = n_wins + n_losses, max(n_wins, n_losses)
    if not n:
        return math.nan
    tail = sum(math.comb(n, k) for k in range(most, n + 1))
    return min(1.0, 2 * tail / 2**n) if n < 1000 else math.erfc((most - n / 2) / math.sqrt(n / 2))


def cohens_kappa(one: Sequence[object], other: Sequence[object]) -> float:
    """Return the agreement of two judges beyond chance (Cohen 1960, https://doi.org/10.1177/001316446002000104).

    1 is full agreement, 0 that of chance; NaN without items, or where both give one and the same verdict throughout.

    Examples
    --------
    >>> cohens_kappa(["a", "a", "b", "b"], ["a", "a", "b", "a"])
    0.5
    """
    n = len(one)
    if not n:
        return math.nan
    observed = sum(a == b for a, b in zip(one, other, strict=True)) / n
    categories = set(one) | set(other)
    chance = sum(list(one).count(c) * list(other).count(c) for c in categories) / n**2
    return math.nan if chance == 1 else (observed - chance) / (1 - chance)


def agreement(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """Return ``n`` pairs that both judged, the share of equal verdicts, and Cohen's kappa; skips are left out."""
    judged = [part[part["verdict"] != "skip"].set_index("key")["verdict"] for part in (one, other)]
    both = judged[0].index.intersection(judged[1].index)
    verdicts = [part[both].tolist() for part in judged]
    equal = sum(a == b for a, b in zip(*verdicts, strict=True))
    return {"n": len(both), "same": equal / len(both) if len(both) else math.nan, "kappa": cohens_kappa(*verdicts)}


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict about a pair; None takes back the one before."""

    key: str
    verdict: Verdict | None
    judge: str


def read_judgements(path: Path, judge: str) -> dict[str, Verdict]:
    """Return one judge's verdicts by the keys of pairs, in the order of the file; a torn last line is left out.

    Raises
    ------
    ConfigError
        The file holds something else.
    """
    found: dict[str, Verdict] = {}
    *lines, torn = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
    start = min(len(torn), len(_START))
    for at, line in enumerate([*lines, *([torn] if torn[:start] != _START[:start] else [])]):
        try:
            one = Judgement(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"Line {at + 1} of {path} is not a judgement. Pass another file as path.") from error
        if one.judge == judge:
            found.pop(one.key, None)
            if one.verdict in VERDICTS:
                found[one.key] = one.verdict
    return found


def write_judgement(path: Path, judgement: Judgement) -> None:
    """Append a judgement to a JSON-lines file, in the place of a line that was torn by a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(asdict(judgement), ensure_ascii=False).encode() + b"\n")


def _name(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={None if _is_missing(value) else value}" for name, value in values.items())


def _is_missing(value: object) -> bool:
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))  # type: ignore[call-overload]


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()[:16]
