"""Maps over the grid of an image's visual tokens, and over its pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_TOKENS = 16_384
"""Cells that a row's maps have at most; more are averaged in squares."""

Grid = tuple[int, int]


def pooled(weights: NDArray[np.float32], grids: Sequence[Grid]) -> tuple[list[NDArray[np.float32]], int]:
    """Split weights by image, and average squares of cells where there are more than `MAX_TOKENS`.

    Parameters
    ----------
    weights : float array (…, n_visual)
        Image by image, row by row.
    grids : sequence of (int, int)
        Rows and columns of each image.

    Returns
    -------
    list of float32 array (…, rows, columns)
        One per image.
    int
        Cells along each side of a square; 1 where nothing is averaged.

    Examples
    --------
    >>> maps, side = pooled(np.arange(6, dtype=np.float32), [(2, 2), (1, 2)])
    >>> [one.tolist() for one in maps], side
    ([[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0]]], 1)
    """
    side = 1
    while sum(-(-rows // side) * -(-columns // side) for rows, columns in grids) > MAX_TOKENS:
        side *= 2
    ends = np.cumsum([rows * columns for rows, columns in grids])[:-1]
    parts = np.split(weights, ends, axis=-1)
    maps = [part.reshape(*part.shape[:-1], *grid) for part, grid in zip(parts, grids, strict=True)]
    return [_averaged(one, side) for one in maps], side


def _averaged(grid: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    if side == 1:
        return grid
    for axis in (-2, -1):
        starts = np.arange(0, grid.shape[axis], side)
        counts = np.diff([*starts, grid.shape[axis]])
        shape = (-1, 1) if axis == -2 else (-1,)
        grid = np.asarray(np.add.reduceat(grid, starts, axis=axis) / counts.reshape(shape), np.float32)
    return grid


def edges(n_cells: int, n_pixels: int) -> NDArray[np.float64]:
    """Return where cells begin and end along a side of an image, in pixels of the original, float (n + 1,).

    Examples
    --------
    >>> edges(4, 100).tolist()
    [0.0, 25.0, 50.0, 75.0, 100.0]
    """
    return np.asarray(np.arange(n_cells + 1) * (n_pixels / n_cells), np.float64)


def on_pixels(grid: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the weight of the cell that each pixel lies in, float32 (H, W).

    Examples
    --------
    >>> on_pixels(np.array([[0.0, 1.0]], np.float32), (1, 4)).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    rows, columns = (
        ((np.arange(n_pixels) + 0.5) * n_cells / n_pixels).astype(np.intp)
        for n_pixels, n_cells in zip(size, grid.shape, strict=True)
    )
    return np.asarray(grid[rows[:, None], columns])


def area_under(shares: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area under curves (…, S) over shares (S,), by trapezoids.

    Examples
    --------
    >>> float(area_under(np.array([0, 0.5, 1]), np.array([1.0, 0.0, 0.0])))
    0.25
    """
    heights = (values[..., 1:] + values[..., :-1]) / 2
    return np.asarray((heights * np.diff(shares)).sum(axis=-1))
