"""Average precision: how well scores put right objects before wrong ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

RECALLS = np.linspace(0.0, 1.0, 101)
"""At which COCO reads precision."""


def average_precision(right: ArrayLike, scores: ArrayLike, n_true: float, weights: ArrayLike | None = None) -> float:
    """Return COCO's average precision, interpolated at 101 recalls (https://cocodataset.org/#detection-eval).

    Precision at a recall is the highest at this recall or above, and 0 beyond the last one. Objects of equal score
    count together, so the order of rows changes nothing; pycocotools counts them in its order of images. Objects
    without a score count last, together.

    Parameters
    ----------
    right : array of bool (n,)
        Whether each found object has a partner.
    scores : array of float (n,)
        NaN without a score.
    n_true : float
        Number of true objects.
    weights : array of float (n,), optional
        How often each found object counts; default: once.

    Returns
    -------
    float
        In [0, 1]; NaN without true objects.

    Examples
    --------
    >>> round(average_precision([True, False, True], [0.9, 0.8, 0.7], 2), 4)
    0.835
    >>> round(average_precision([True, False, True], [0.5, 0.5, 0.5], 2), 4)
    0.6667
    """
    if not n_true > 0:
        return float("nan")
    hits, ranks = np.asarray(right, bool), -np.asarray(scores, np.float64)  # NaN sorts last
    counts = np.ones(len(hits)) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(ranks, kind="stable")
    n_right, n_found = np.cumsum((hits * counts)[order]), np.cumsum(counts[order])
    ends = _ends_of_ties(ranks[order])
    return _interpolated(n_right[ends], n_found[ends], n_true)


def _ends_of_ties(ranks: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of the sorted ranks is the last of its equals."""
    ends = np.ones(len(ranks), bool)
    ends[:-1] = (ranks[1:] != ranks[:-1]) & ~(np.isnan(ranks[1:]) & np.isnan(ranks[:-1]))
    return ends


def _interpolated(n_right: NDArray[np.float64], n_found: NDArray[np.float64], n_true: float) -> float:
    precision = np.divide(n_right, n_found, out=np.zeros_like(n_right), where=n_found > 0)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(n_right / n_true, RECALLS, side="left")
    return float(np.append(envelope, 0.0)[at].mean())
