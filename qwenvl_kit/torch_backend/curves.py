"""Deletion and insertion curves: whether a word depends on the visual tokens that a map says it depends on.

https://arxiv.org/abs/1806.07421, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from qwenvl_kit.attribution import Curves

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from qwenvl_kit.inference.words import Word
    from qwenvl_kit.torch_backend.replay import Replay

_N_RANDOM = 4


def curves_of(
    weights: NDArray[np.float32], words: Sequence[Word], n_steps: int, replay: Replay, features: Tensor
) -> list[Curves]:
    """Return the curves of each word.

    Parameters
    ----------
    weights : float array (W, n_visual)
        Map of each word.
    words : sequence of Word
        The words.
    n_steps : int
        Steps from no token to all.
    replay : Replay
        Reads the answer again.
    features : Tensor (n_visual, D)
        The visual tokens.
    """
    n_visual = weights.shape[1]
    shares = np.linspace(0, 1, n_steps + 1)
    # Half of the random orders are the other half backwards: their mean is steadier.
    generator = np.random.default_rng(0)
    some = [generator.permutation(n_visual) for _ in range(_N_RANDOM // 2)]
    orders = [np.argsort(-each, kind="stable") for each in weights] + some + [order[::-1] for order in some]
    hidden = np.concatenate([hidden_by(order, shares) for order in orders])  # (O · 2 · S, n_visual)
    logprobs = replay.without(torch.from_numpy(hidden), features).cpu().numpy()
    each = logprobs.reshape(len(orders), 2, len(shares), -1)  # (O, 2, S, T)
    found = []
    for at, word in enumerate(words):
        p = np.exp(each[..., list(word.tokens)].sum(axis=-1, dtype=np.float64))  # (O, 2, S)
        random = p[len(words) :]
        found.append(Curves(shares, p[at, 0], p[at, 1], random[:, 0], random[:, 1]))
    return found


def hidden_by(order: NDArray[np.intp], shares: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the tokens that deletion and then insertion hides at each share, bool (2 · S, n).

    Examples
    --------
    >>> hidden_by(np.array([2, 0, 1]), np.array([0, 0.34, 1])).astype(int).tolist()
    [[0, 0, 0], [0, 0, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 0, 0]]
    """
    rank = np.argsort(order)
    first = rank < np.round(shares * len(order))[:, None]
    return np.concatenate([first, ~first])
