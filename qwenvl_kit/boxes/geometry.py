"""Measure how far boxes overlap, and which points lie in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def iou(ones: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """Return the intersection over union of each pair of boxes.

    Parameters
    ----------
    ones, others : array of float (n, 4) and (m, 4)
        ``x0, y0, x1, y1`` with ``x0 <= x1`` and ``y0 <= y1``, in any one unit; a box has no pixel beyond its corners.

    Returns
    -------
    array of float64 (n, m)
        In [0, 1]; 0 where both boxes have no area.

    Examples
    --------
    >>> iou([[0, 0, 2, 2]], [[0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2]]).round(3).tolist()
    [[1.0, 0.333, 0.0]]
    """
    one, other = _boxes(ones)[:, None], _boxes(others)[None, :]  # (n, 1, 4), (1, m, 4)
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    shared = np.maximum(sides, 0.0).prod(axis=-1)  # (n, m)
    union = areas(one) + areas(other) - shared
    overlap: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlap


def inside(points: ArrayLike, boxes: ArrayLike) -> NDArray[np.bool_]:
    """Return which points lie in which boxes, their edges included.

    Parameters
    ----------
    points : array of float (n, 2)
        ``x, y``.
    boxes : array of float (m, 4)
        ``x0, y0, x1, y1``.

    Returns
    -------
    array of bool (n, m)

    Examples
    --------
    >>> inside([[1, 1], [5, 5]], [[0, 0, 2, 2]]).tolist()
    [[True], [False]]
    """
    point, box = np.asarray(points, np.float64).reshape(-1, 1, 2), _boxes(boxes)[None, :]
    within = (point >= box[..., :2]) & (point <= box[..., 2:])  # (n, m, 2)
    return within[..., 0] & within[..., 1]


def areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return width × height of boxes (..., 4)."""
    found: NDArray[np.float64] = (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)
    return found


def _boxes(boxes: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(boxes, np.float64).reshape(-1, 4)
