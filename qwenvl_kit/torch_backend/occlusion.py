"""Groups of visual tokens that are hidden together, and what they say of each token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SIDE = 2  # groups that are hidden together along each side: neighbours show much of what a single one does


def group_masks(grids: Sequence[tuple[int, int]], n_side: int) -> NDArray[np.bool_]:
    """Return which visual tokens each reading hides: squares of groups that overlap by half.

    Squares reach over the borders. So each group is in as many as any other, and one at a border is no stronger for it.

    Parameters
    ----------
    grids : sequence of (int, int)
        Rows and columns of visual tokens of each image.
    n_side : int
        Most groups along a side of an image.

    Returns
    -------
    bool array (N, n_visual)
        Every visual token is hidden four times.

    Examples
    --------
    >>> group_masks([(1, 2)], 2).astype(int).tolist()
    [[1, 0], [1, 1], [0, 1], [1, 0], [1, 1], [0, 1]]
    """
    sizes = [rows * columns for rows, columns in grids]
    masks, before = [], 0
    for (rows, columns), size in zip(grids, sizes, strict=True):
        for down in _windows(rows, n_side):
            for across in _windows(columns, n_side):
                mask = np.zeros(sum(sizes), np.bool_)
                mask[before : before + size] = np.outer(down, across).ravel()
                masks.append(mask)
        before += size
    return np.array(masks)


def _windows(n_tokens: int, n_side: int) -> list[NDArray[np.bool_]]:
    """Return the tokens of each window along a side."""
    n_groups = min(n_side, n_tokens)
    group = np.arange(n_tokens) * n_groups // n_tokens
    return [(group >= at) & (group < at + _SIDE) for at in range(1 - _SIDE, n_groups)]


def spread_drops(drops: NDArray[np.float32], groups: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the mean drop of the readings that hide each token.

    Parameters
    ----------
    drops : float array (W, N)
        What each word loses in each reading.
    groups : bool array (N, n_visual)
        As of `group_masks`.

    Returns
    -------
    float32 array (W, n_visual)

    Examples
    --------
    >>> spread_drops(np.array([[4.0, 0.0]]), np.array([[True, True, False], [False, True, True]])).tolist()
    [[4.0, 2.0, 0.0]]
    """
    sums = drops.astype(np.float64) @ groups
    return np.asarray(sums / groups.sum(axis=0), np.float32)
