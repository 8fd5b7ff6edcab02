"""Sample among the k likeliest tokens of each row on a CPU, without a sort of the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_MOST_TIES = 64  # beside the k likeliest tokens: transformers' top-k keeps all that equal the last of them
_LANES = 64  # softmax adds in vectors of 8 or 16 lanes


@dataclass(frozen=True, slots=True)
class Candidates:
    """The tokens that top-k and top-p leave of each row.

    Attributes
    ----------
    ids : int64 Tensor (B, n)
        Tokens, likeliest first.
    scores : float32 Tensor (B, n)
        After the temperature; -inf for a token that is not left.
    is_complete : bool Tensor (B,)
        False for a row with more tokens than are looked at that equal its k-th.
    """

    ids: Tensor
    scores: Tensor
    is_complete: Tensor


def top_k_candidates(scores: Tensor, *, temperature: float, top_k: int, top_p: float | None) -> Candidates:
    """Apply temperature, top-k and top-p to scores (B, V) as transformers does, bit for bit.

    Examples
    --------
    >>> import torch
    >>> found = top_k_candidates(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), temperature=0.5, top_k=2, top_p=None)
    >>> found.ids[0, :2].tolist(), found.scores[0].tolist()
    ([1, 3], [8.0, 6.0, -inf, -inf])
    """
    n_vocab = scores.shape[1]
    top_k = min(top_k, n_vocab)
    n = min(top_k + _MOST_TIES, n_vocab)
    best, ids = scores.topk(n)  # (B, n)
    best = best / temperature
    least, last = best[:, top_k - 1], best[:, -1]
    is_complete = (last < least) | last.isneginf() | (n == n_vocab)
    best = best.masked_fill(best < least[:, None], -torch.inf)
    if top_p is not None and top_p < 1:
        is_removed = _beyond_top_p(best, top_p, n_vocab)
        is_tied = is_removed[:, 1:] & ~is_removed[:, :-1] & (best[:, 1:] == best[:, :-1])
        for row in is_tied.any(dim=1).nonzero()[:, 0].tolist():
            ids[row] = _as_sorted(scores[row] / temperature, least[row])[:n]
        best = best.masked_fill(is_removed, -torch.inf)
    return Candidates(ids, best, is_complete)


def _beyond_top_p(scores: Tensor, top_p: float, n_vocab: int) -> Tensor:
    """Return which scores (B, n) top-p removes; they are in descending order, those of all other tokens -inf."""
    n = scores.shape[1]
    # The sum over n columns equals that over the vocabulary to the last bit if the columns fall into the same lanes.
    ascending = torch.nn.functional.pad(scores.flip(1), ((n_vocab - n) % _LANES, 0), value=-torch.inf)
    is_removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    is_removed[:, -1] = False
    return is_removed[:, -n:].flip(1)


def _as_sorted(scores: Tensor, least: Tensor) -> Tensor:
    """Return the tokens of scores (V,) in descending order, equal ones as in transformers' top-p.

    Where top-p keeps only some of equal tokens, its sort decides which, and that is not stable.
    """
    return scores.masked_fill(scores < least, -torch.inf).sort().indices.flip(0)
