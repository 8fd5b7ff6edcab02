"""Compute large passes of the vision tower in blocks of rows, which bounds their memory and how long they go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from qwenvl_kit.inference.cancellation import check
from qwenvl_kit.inference.packing import max_block_rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_Rows = TypeVar("_Rows", "Tensor", "tuple[Tensor, ...]")
# Queries times keys in one call, for each head: 2**24 with 16 heads of 80 are 86 GFLOP.
_MAX_PAIRS = {"cpu": 2**24, "cuda": 2**30}


def by_rows(function: Callable[..., _Rows], *inputs: Tensor) -> _Rows:
    """Apply a function of rows to blocks of rows.

    Parameters
    ----------
    function : callable
        From tensors with one row per patch to another or to several; each row depends on its own row only.
    *inputs : Tensor (P, …)
        Its inputs.
    """
    n_rows, most = len(inputs[0]), max_block_rows(inputs[0].device)
    if n_rows <= most:
        return function(*inputs)
    whole: list[Tensor] = []
    for block in blocks(n_rows, most):
        made = function(*(each[block] for each in inputs))
        parts = made if isinstance(made, tuple) else (made,)
        whole = whole or [part.new_empty(n_rows, *part.shape[1:]) for part in parts]
        for held, part in zip(whole, parts, strict=True):
            held[block] = part
    return tuple(whole) if isinstance(made, tuple) else whole[0]


def blocks(n_rows: int, most: int) -> Iterator[slice]:
    """Yield slices of at most `most` rows, with a cancellation point before each."""
    for start in range(0, n_rows, most):
        check()
        yield slice(start, min(start + most, n_rows))


def max_queries(n_keys: int, device: torch.device) -> int:
    """Return how many queries attend to `n_keys` keys in one call."""
    pairs = _MAX_PAIRS["cpu" if device.type == "cpu" else "cuda"]
    return max(1, min(max_block_rows(device), pairs // n_keys))
