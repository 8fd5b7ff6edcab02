"""Pair found objects with true ones, by score and overlap, as COCO's evaluation does."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from qwenvl_kit.boxes.frame import coordinates, kind_of
from qwenvl_kit.boxes.geometry import areas, inside, iou

if TYPE_CHECKING:
    from numpy.typing import NDArray


def match(
    overlap: NDArray[np.float64], scores: NDArray[np.float64], least: float
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Give each found object the free true object that it overlaps most.

    Found objects take turns by falling score; those without a score come last, and equal ones stay in their order. Of
    equal overlaps the last true object is taken, as by pycocotools
    (https://github.com/cocodataset/cocoapi/blob/master/PythonAPI/pycocotools/cocoeval.py).

    Parameters
    ----------
    overlap : array of float64 (n, m)
        Of each found and each true object.
    scores : array of float64 (n,)
        NaN without a score.
    least : float
        Smallest overlap of a pair; pairs of overlap 0 never match.

    Returns
    -------
    partners : array of int (n,)
        Position of the true object; -1 without one.
    overlaps : array of float64 (n,)
        Overlap with it; 0 without one.

    Examples
    --------
    >>> partners, overlaps = match(np.array([[0.9, 0.2], [0.8, 0.6]]), np.array([0.5, 0.7]), 0.5)
    >>> partners.tolist(), overlaps.tolist()
    ([-1, 0], [0.0, 0.8])
    """
    n_found, n_true = overlap.shape
    partners, overlaps = np.full(n_found, -1), np.zeros(n_found)
    free = np.ones(n_true, bool)
    for at in by_score(scores):
        offered = np.where(free & (overlap[at] > 0) & (overlap[at] >= least), overlap[at], -1.0)
        if not n_true or offered.max() < 0:
            continue
        best = n_true - 1 - int(np.argmax(offered[::-1]))
        partners[at], overlaps[at], free[best] = best, overlap[at, best], False
    return partners, overlaps


def by_score(scores: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return positions by falling score: equal ones in order, those without a score last."""
    return np.argsort(np.where(np.isnan(scores), np.inf, -scores), kind="stable")


def pair(found: pd.DataFrame, truth: pd.DataFrame, least: float) -> pd.DataFrame:
    """Pair the objects of two checked frames, image by image and label by label.

    Parameters
    ----------
    found : DataFrame
        Checked boxes or points.
    truth : DataFrame
        Checked boxes.
    least : float
        As of `match`. A point overlaps a box by 1 where it lies in it; of several boxes it takes the smallest.

    Returns
    -------
    DataFrame
        Under the index of `found`: ``partner``, the position in `truth` or -1, and ``iou``, 0 without one.
    """
    partners, overlaps = np.full(len(found), -1), np.zeros(len(found))
    shapes, boxes, scores = coordinates(found), coordinates(truth), found["score"].to_numpy(np.float64)
    measure = _box_overlap if kind_of(found) == "boxes" else _point_overlap
    true_places = _places(truth)
    for key, places in _places(found).items():
        against = true_places.get(key)
        if against is None:
            continue
        overlap, order = measure(shapes[places], boxes[against])
        partner, overlaps[places] = match(overlap, scores[places], least)
        partners[places] = np.where(partner >= 0, against[order][partner], -1)
    return pd.DataFrame({"partner": partners, "iou": overlaps}, index=found.index)


def _places(objects: pd.DataFrame) -> dict[tuple[Hashable, str], NDArray[np.intp]]:
    """Return the positions of the objects of each image and label."""
    places: dict[tuple[Hashable, str], list[int]] = {}
    for at, key in enumerate(zip(objects["row"].tolist(), objects["label"].tolist(), strict=True)):
        places.setdefault(key, []).append(at)
    return {key: np.array(some, np.intp) for key, some in places.items()}


def _box_overlap(
    found: NDArray[np.float64], truth: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the overlap (n, m), and the positions of the true boxes that its columns stand for."""
    return iou(found, truth), np.arange(len(truth), dtype=np.intp)


def _point_overlap(
    found: NDArray[np.float64], truth: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return 1 where a point lies in a box; the smallest box stands last, since the last of equals is taken."""
    order = np.argsort(-areas(truth), kind="stable")
    return inside(found, truth[order]).astype(np.float64), order
