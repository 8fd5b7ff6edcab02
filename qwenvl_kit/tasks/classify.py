"""Classify images by the likelihood of labels: what is asked, and probabilities of what comes back."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pandas as pd

from qwenvl_kit.errors import ConfigError, RowError, printable
from qwenvl_kit.images import is_null
from qwenvl_kit.options import SamplingOptions, names_of
from qwenvl_kit.types import Prompt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwenvl_kit.options import Config

Normalize = Literal["sum", "length"]
Prior = Literal["blank"]
_GREY = 127  # of a blank image
# What only a generated answer can change:
_GENERATING = {"do_sample": False, "num_beams": 1, "stop_repetition": False, "start_with": None}
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Classification:
    """How labels are compared and shown.

    Attributes
    ----------
    normalize : {"sum", "length"}
        Compare the likelihoods of whole labels, or their geometric mean over the tokens of each.
    prior : {"blank"} or None
        Subtract the log-likelihoods that a blank image of the same size gives.
    all_labels : bool
        Return a column per label as well.
    """

    normalize: Normalize = "sum"
    prior: Prior | None = None
    all_labels: bool = False

    def __post_init__(self) -> None:
        _check_choice("normalize", self.normalize, ("sum", "length"))
        _check_choice("prior", self.prior, ("blank", None))

    def frame(
        self, results: pd.DataFrame, labels: Sequence[tuple[str, ...]], blank: pd.DataFrame | None
    ) -> pd.DataFrame:
        """Return ``label`` and ``probability`` of each row, missing where it failed.

        Parameters
        ----------
        results : DataFrame
            Of a run whose prompts had labels.
        labels : sequence of tuple of str
            Of each row; empty for a row without.
        blank : DataFrame, optional
            Results for blank images, under the same index.
        """
        rows = [
            None if scores is None else dict(zip(some, softmax(scores).tolist(), strict=True))
            for scores, some in zip(self._scores(results, blank), labels, strict=True)
        ]
        best = [None if row is None else max(row, key=row.__getitem__) for row in rows]
        columns: dict[str, Any] = {
            "label": pd.Series(best, index=results.index, dtype=results["text"].dtype),
            "probability": [np.nan if row is None else max(row.values()) for row in rows],
        }
        if self.all_labels:
            for name in dict.fromkeys(one for some in labels for one in some):
                columns[name] = [np.nan if row is None else row.get(name, np.nan) for row in rows]
        frame = pd.DataFrame(columns, index=results.index)
        frame.attrs = {**results.attrs, "classify": {"normalize": self.normalize, "prior": self.prior}}
        return frame

    def check_names(self, labels: Sequence[tuple[str, ...]]) -> None:
        """Raise ConfigError for a label whose column would replace another."""
        taken = {"label", "probability"} & {one for some in labels for one in some}
        if self.all_labels and taken:
            raise ConfigError(f"The label {taken.pop()!r} is also a column of the result. Rename it, or leave all out.")

    def _scores(self, results: pd.DataFrame, blank: pd.DataFrame | None) -> list[NDArray[np.float64] | None]:
        scores = self._normalized(results)
        if blank is None:
            return scores
        without = self._normalized(blank)
        return [
            None if one is None or other is None else one - other for one, other in zip(scores, without, strict=True)
        ]

    def _normalized(self, results: pd.DataFrame) -> list[NDArray[np.float64] | None]:
        logprobs, tokens = (_label_column(results, name) for name in ("label_logprobs", "label_tokens"))
        return [
            None if some is None else np.asarray(some) / (np.asarray(counts) if self.normalize == "length" else 1)
            for some, counts in zip(logprobs, tokens, strict=True)
        ]


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return probabilities in proportion to the exponentials of scores.

    Examples
    --------
    >>> softmax(np.log([1.0, 3.0])).round(2).tolist()
    [0.25, 0.75]
    """
    powers: NDArray[np.float64] = np.exp(scores - scores.max())
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares


def check_classifiable(config: Config) -> None:
    """Raise ConfigError for a backend that scores no labels, and for explicit options of generated answers."""
    if config.backend == "echo":
        raise ConfigError("backend='echo' has no model to score labels with. Use backend='torch' or 'onnx'.")
    if config.backend == "openai":
        raise ConfigError(
            "backend='openai' cannot score labels: servers return probabilities of the tokens that they generate, not "
            "of given answers. Use backend='torch' or 'onnx', or generate one of them with df.vl.ask(…, choices=[…])."
        )
    for name, value in _GENERATING.items():
        given = getattr(config, name)
        if name in config.explicit and given != value:
            raise ConfigError(f"{name}={given!r} changes generated answers only, and labels are scored. Leave it out.")


def check_varied(vary: Iterable[str]) -> None:
    """Raise ConfigError for options of generated answers, of which scores of labels do not depend."""
    if idle := [name for name in vary if name in names_of(SamplingOptions)]:
        raise ConfigError(
            f"vary[{idle[0]!r}] has no effect with labels, because it changes generated answers only. Leave it out."
        )


def row_labels(labels: object, n_rows: int) -> list[tuple[str, ...]]:
    """Return the labels of each row, empty where they are missing.

    Parameters
    ----------
    labels : sequence of str, or sequence of sequences of str
        Labels of all rows, or one list per row; None, NaN and an empty list are missing.
    n_rows : int
        Number of rows.

    Raises
    ------
    ConfigError
        Labels are fewer than two or equal; one is no text; there is not one list per row.

    Examples
    --------
    >>> row_labels(["cat", "dog"], 2)
    [('cat', 'dog'), ('cat', 'dog')]
    >>> row_labels([["yes", "no"], None], 2)
    [('yes', 'no'), ()]
    """
    given = _as_list(labels)
    if given is None:
        raise ConfigError(f"labels must be a list of texts, or one list per row; got {_shown(labels)}.")
    if all(isinstance(one, str) for one in given):
        return [checked_labels(given, "labels")] * n_rows
    if len(given) != n_rows:
        raise ConfigError(
            f"labels has {len(given)} entries for {n_rows} rows. Pass one list per row, or one list of texts for all."
        )
    return [() if is_missing(one) else checked_labels(one, f"labels of row {row}") for row, one in enumerate(given)]


def label_prompts(
    texts: Sequence[str | None], labels: Sequence[tuple[str, ...]], *, is_own: bool
) -> list[Prompt | RowError | None]:
    """Return the prompt of each row with its labels; the error of a row without labels.

    Parameters
    ----------
    texts : sequence of str or None
        Prompts.
    labels : sequence of tuple of str
        Of each row.
    is_own : bool
        The caller wrote the prompts; else each row is asked which of its labels fits.
    """
    asked = texts if is_own else [_which_of(some) for some in labels]
    return [
        _no_labels() if not some else None if text is None else Prompt(text, some)
        for text, some in zip(asked, labels, strict=True)
    ]


def blank_cells(cells: Sequence[object], results: pd.DataFrame) -> list[object]:
    """Return a grey image for each image of a row that was scored, in the size that the model saw; else None."""
    heights, widths = (results[name].fillna(0).astype(int).tolist() for name in ("height", "width"))
    found: list[object] = []
    for cell, height, width, scores in zip(
        cells, heights, widths, _label_column(results, "label_logprobs"), strict=True
    ):
        images = cast("Sequence[object]", cell) if isinstance(cell, list | tuple) else [cell]
        n_images = sum(not is_null(one) for one in images)
        found.append(None if scores is None else [_blank(height, width)] * n_images)
    return found


@functools.lru_cache(maxsize=64)
def _blank(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), _GREY, np.uint8)


def _which_of(labels: tuple[str, ...]) -> str:
    return f"Which of these fits the image best: {', '.join(labels)}? Answer with one of them only."


def _no_labels() -> RowError:
    return RowError("generate", "The row has no labels. Fill the column, or pass one list of labels for all rows.")


def _label_column(results: pd.DataFrame, name: str) -> list[Any]:
    """Return a column that a frame has only where a row was scored."""
    return results[name].tolist() if name in results else [None] * len(results)


def _check_choice(name: str, value: object, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be {' or '.join(map(repr, allowed))}; got {_shown(value)}.")


def _as_list(labels: object) -> list[object] | None:
    is_many = isinstance(labels, Sequence | np.ndarray | pd.Series | pd.Index) and not isinstance(labels, str | bytes)
    return list(cast("Sequence[object]", labels)) if is_many else None


def is_missing(labels: object) -> bool:
    """Return whether the labels of a row are None, NaN or an empty list."""
    given = _as_list(labels)
    return not given if given is not None else labels is None or bool(pd.isna(cast("Any", labels)))


def checked_labels(labels: object, what: str, *, n_least: int = 2) -> tuple[str, ...]:
    """Return labels as a tuple.

    Raises
    ------
    ConfigError
        They are fewer than `n_least` or equal, or one is no text. The message calls them `what`.
    """
    given = _as_list(labels)
    if given is None:
        raise ConfigError(f"{what} must be a list of texts; got {_shown(labels)}.")
    texts = [one for one in given if isinstance(one, str) and one.strip()]
    if len(texts) < len(given):
        odd = next(one for one in given if not isinstance(one, str) or not one.strip())
        raise ConfigError(f"{what} contain {_shown(odd)}. Each must be a text that is not blank.")
    twice = next((one for one, n in Counter(texts).items() if n > 1), None)
    if twice is not None:
        raise ConfigError(f"{what} contain {_shown(twice)} twice. Leave one of them out.")
    if len(texts) < n_least:
        raise ConfigError(f"{what} are {texts!r}. Pass at least two: probabilities are shared among them.")
    return tuple(texts)


def _shown(value: object) -> str:
    return printable(repr(value), _SHOWN)
