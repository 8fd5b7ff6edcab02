"""Average precision: how well scores put right objects before wrong ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

RECALLS = np.linspace(0.0, 1.0, 101)
"""At which COCO reads precision."""


def average_precision(right: ArrayLike, scores: ArrayLike, n_true: int) -> float:
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
    n_true : int
        Number of true objects.

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
    once = np.ones((1, len(np.asarray(scores))))
    return float(average_precisions(right, scores, np.array([n_true]), once)[0])


def average_precisions(
    right: ArrayLike, scores: ArrayLike, n_true: ArrayLike, weights: ArrayLike
) -> NDArray[np.float64]:
    """Return `average_precision` of several samples of the same objects.

    Parameters
    ----------
    right, scores : array (n,)
        As of `average_precision`.
    n_true : array of int (samples,)
        Number of true objects in each sample.
    weights : array of int (samples, n)
        How often each found object counts in each sample.

    Returns
    -------
    array of float64 (samples,)
    """
    ranks = -np.asarray(scores, np.float64)  # NaN sorts last
    order = np.argsort(ranks, kind="stable")
    ends = _ends_of_ties(ranks[order])
    counts, n_true = np.asarray(weights, np.float64)[:, order], np.asarray(n_true, np.float64)[:, None]
    n_right = np.cumsum(counts * np.asarray(right, bool)[order], axis=1)[:, ends]  # (samples, distinct scores)
    n_found = np.cumsum(counts, axis=1)[:, ends]
    precision = np.divide(n_right, n_found, out=np.zeros_like(n_right), where=n_found > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = np.divide(n_right, n_true, out=np.zeros_like(n_right), where=n_true > 0)
    n_read = np.diff(np.searchsorted(RECALLS, recall, side="right"), axis=1, prepend=0)  # recalls read at each score
    found: NDArray[np.float64] = np.where(n_true[:, 0] > 0, (n_read * envelope).sum(axis=1) / len(RECALLS), np.nan)
    return found


def _ends_of_ties(ranks: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of the sorted ranks is the last of its equals."""
    ends = np.ones(len(ranks), bool)
    ends[:-1] = (ranks[1:] != ranks[:-1]) & ~(np.isnan(ranks[1:]) & np.isnan(ranks[:-1]))
    return ends
