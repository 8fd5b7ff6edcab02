"""M-RoPE positions of prompts with images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def mrope_positions(
    ids: Sequence[int], grids: Sequence[tuple[int, int, int]], *, image_id: int, merge: int
) -> tuple[NDArray[np.int64], int]:
    """Return the positions of a prompt's tokens, and the position of the token that follows it.

    A text token advances all three rows by one. The visual tokens of an image have one temporal position and their own
    row and column, counted from the end of the text before. The text continues after the largest of them
    (Qwen2-VL, https://arxiv.org/abs/2409.12191, section 2.1; an image has one frame).

    Parameters
    ----------
    ids : sequence of int
        The prompt, with one token for each visual token.
    grids : sequence of (frames, rows, columns)
        Patches of each image, in order.
    image_id : int
        The id of a visual token.
    merge : int
        Patches per side that become one visual token.

    Returns
    -------
    positions : int64 array (3, T)
        Temporal, row and column positions.
    following : int
        Position of the next token.

    Examples
    --------
    >>> positions, following = mrope_positions([5, 9, 9, 6], [(1, 2, 4)], image_id=9, merge=2)
    >>> positions.tolist(), following
    ([[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]], 4)
    """
    tokens = np.asarray(ids)
    positions = np.empty((3, len(tokens)), dtype=np.int64)
    at, following = 0, 0
    images = iter(grids)
    while at < len(tokens):
        if tokens[at] == image_id:
            frames, rows, columns = next(images)
            shape = (frames, rows // merge, columns // merge)
            n_tokens = shape[0] * shape[1] * shape[2]
            # (3, frames, rows, columns) → (3, n): frame, row and column of each visual token
            positions[:, at : at + n_tokens] = np.indices(shape).reshape(3, -1) + following
            following += max(shape)
        else:
            ahead = np.flatnonzero(tokens[at:] == image_id)
            n_tokens = int(ahead[0]) if len(ahead) else len(tokens) - at
            positions[:, at : at + n_tokens] = np.arange(n_tokens) + following
            following += n_tokens
        at += n_tokens
    return positions, following
