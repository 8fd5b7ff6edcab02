"""Measure whether answers are right as often as their probabilities say: calibration error, Brier score, bins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from qwenvl_kit.compare.statistics import interval_of
from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

N_BINS = 15
"""Bins of a calibration error, as of Guo et al. 2017."""

_MAX_BINS = 1000


def calibration_error(confidence: ArrayLike, right: ArrayLike, n_bins: int = N_BINS) -> float:
    """Return the expected calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    It is the gap between the mean probability and the share of right answers of a bin, averaged over answers. Few
    answers in a bin have a gap by chance, so it is too large for small samples.

    Parameters
    ----------
    confidence : array of float (n,)
        Probability of each answer, in [0, 1]; answers without are left out.
    right : array of bool (n,)
        Whether it is right.
    n_bins : int
        Bins of equal width.

    Examples
    --------
    >>> calibration_error([1.0, 1.0, 0.5, 0.5], [True, True, True, False])
    0.0
    """
    sure, true, of = _known(confidence, right)
    return _gap(_gaps(sure, true, of, n_bins).sum(axis=0), len(sure))


def calibration_interval(
    confidence: ArrayLike, right: ArrayLike, images: ArrayLike, level: float = 0.95, n_bins: int = N_BINS
) -> tuple[float, float]:
    """Return the bootstrap interval of a calibration error; all answers of an image are drawn together.

    Parameters
    ----------
    confidence, right, n_bins
        As of `calibration_error`.
    images : array (n,)
        What each answer is about.
    level : float
        Coverage, in (0, 1).

    Examples
    --------
    >>> calibration_interval([0.75] * 8, [True] * 8, range(8))
    (0.25, 0.25)
    """
    sure, true, of = _known(confidence, right, images)
    gaps, counts = _gaps(sure, true, of, n_bins), np.bincount(of)
    return interval_of(lambda drawn: _gap(gaps[drawn].sum(axis=0), int(counts[drawn].sum())), len(counts), level)


def brier_score(confidence: ArrayLike, right: ArrayLike) -> float:
    """Return the mean squared difference of the probability of an answer and whether it is right.

    With two labels it is the score of Brier (1950) of either label, halved as usual.

    Examples
    --------
    >>> brier_score([1.0, 0.5], [True, False])
    0.125
    """
    sure, true, _ = _known(confidence, right)
    return float(np.square(sure - true).mean()) if len(sure) else float("nan")


def reliability_bins(
    confidence: ArrayLike, right: ArrayLike, images: ArrayLike, *, n_bins: int = N_BINS, level: float = 0.95
) -> pd.DataFrame:
    """Return the points of a reliability diagram: a row per bin of equal width that has answers.

    Parameters
    ----------
    confidence, right, images, n_bins, level
        As of `calibration_interval`.

    Returns
    -------
    DataFrame
        ``low`` and ``high``, the edges of the bin; ``n`` answers; their mean ``confidence`` and the share that is
        ``right``, with its interval over images, ``right_low`` and ``right_high``.

    Raises
    ------
    ConfigError
        `n_bins` is no number from 1 to 1,000.

    Examples
    --------
    >>> reliability_bins([0.9, 0.9, 0.6], [True, True, False], [0, 1, 2], n_bins=2)["n"].tolist()
    [3]
    """
    if not isinstance(n_bins, int) or isinstance(n_bins, bool) or not 1 <= n_bins <= _MAX_BINS:
        raise ConfigError(f"n_bins={n_bins!r} is invalid. It must be an integer from 1 to {_MAX_BINS}.")
    sure, true, of = _known(confidence, right, images)
    bins = _bins(sure, n_bins)
    rows = []
    for at in np.unique(bins).tolist():
        here = bins == at
        low, high = _share_interval(true[here], of[here], level)
        means = float(sure[here].mean()), float(true[here].mean())
        rows.append((at / n_bins, (at + 1) / n_bins, int(here.sum()), *means, low, high))
    return pd.DataFrame(rows, columns=["low", "high", "n", "confidence", "right", "right_low", "right_high"])


def _known(
    confidence: ArrayLike, right: ArrayLike, images: ArrayLike | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    """Return the answers of which both are known, and the number of the image of each; None for an image each."""
    sure, true = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    known = ~np.isnan(sure + true)
    of = np.arange(len(sure)) if images is None else np.asarray(images)
    return sure[known], true[known], np.unique(of[known], return_inverse=True)[1]


def _share_interval(true: NDArray[np.float64], of: NDArray[np.intp], level: float) -> tuple[float, float]:
    counts = np.bincount(of)
    sums, counts = np.bincount(of, true)[counts > 0], counts[counts > 0]
    return interval_of(lambda drawn: float(sums[drawn].sum() / counts[drawn].sum()), len(counts), level)


def _bins(sure: NDArray[np.float64], n_bins: int) -> NDArray[np.intp]:
    bins: NDArray[np.intp] = np.minimum((sure * n_bins).astype(np.intp), n_bins - 1)
    return bins


def _gaps(
    sure: NDArray[np.float64], true: NDArray[np.float64], of: NDArray[np.intp], n_bins: int
) -> NDArray[np.float64]:
    """Return the sum of the differences of each image in each bin, float (images, bins)."""
    gaps = np.zeros((int(of.max()) + 1 if len(of) else 0, n_bins))
    np.add.at(gaps, (of, _bins(sure, n_bins)), sure - true)
    return gaps


def _gap(gaps: NDArray[np.float64], n: int) -> float:
    return float(np.abs(gaps).sum() / n) if n else float("nan")
