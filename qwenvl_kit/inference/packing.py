"""Pack images and prompts into forward passes that fill a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qwenvl_kit.inference.sequence import Sequence as _Sequence

_PREFILL_TOKENS = {"cpu": 640, "cuda": 8192}  # in one pass, padding included: what fills a device, and its caches
_IMAGE_PATCHES = {"cpu": 1024, "cuda": 16384}  # in one pass
_GROUP = 8  # sequences prefilled between two looks at `cancel`, unless all their images fit one pass
_HELD_PATCHES = {"cpu": 2048, "cuda": 16384}  # at once, up to 80 MB: what a model runner needs to fill its device


# Of patches: 2048 through a 3B's gated network are 54 GFLOP, about half a second on two CPU cores. A pass over several
# images is no larger than this, so that only a large image is cut.
_BLOCK_ROWS = {"cpu": 2048, "cuda": 16384}
# 32 captions of a model of 94.5 M parameters took 29.3, 25.1, 21.8 and 21.0 CPU seconds at 4, 8, 16 and 32 rows (one
# thread, tests/benchmarks/rows_in_flight.py). That of GPUs is vLLM's order of magnitude, not yet tried on a GPU.
MAX_ROWS = {"cpu": 16, "cuda": 256}
"""Rows in flight that are run unasked."""
MAX_FEATURE_BYTES = 128 * 2**20
"""Of visual tokens that are kept: about 60 images of 300 tokens of the 7B model in 16 bits."""


def max_prefill_tokens(device: torch.device | str) -> int:
    """Return the most tokens of one prefill pass, padding included; a longer prompt has a pass of its own."""
    return _PREFILL_TOKENS[_kind(device)]


def max_image_patches(device: torch.device | str) -> int:
    """Return the most patches of one pass of the vision tower; a larger image has a pass of its own."""
    return _IMAGE_PATCHES[_kind(device)]


def max_block_rows(device: torch.device | str) -> int:
    """Return the most patches that go through a linear layer at once."""
    return _BLOCK_ROWS[_kind(device)]


def max_held_patches(device: torch.device | str) -> int:
    """Return the most patches that are held at once; a larger image is held alone."""
    return _HELD_PATCHES[_kind(device)]


def is_one_group(sequences: Sequence[_Sequence], device: torch.device) -> bool:
    """Return whether sequences are prefilled together, before any of them decodes."""
    if len(sequences) <= _GROUP:
        return True
    patches = {key: int(grid.prod()) for one in sequences for key, grid in zip(one.image_keys, one.grid, strict=True)}
    return sum(patches.values()) <= max_image_patches(device)


def pack(items: Iterable[int], fits: Callable[[list[int]], bool]) -> list[list[int]]:
    """Split items into consecutive batches, each as long as it fits.

    Parameters
    ----------
    items : iterable of int
        Kept in order.
    fits : callable
        Return whether a batch of two or more items fits one pass; a single item always has one.

    Examples
    --------
    >>> pack(range(5), lambda batch: sum(batch) < 6)
    [[0, 1, 2], [3], [4]]
    """
    batches: list[list[int]] = []
    for item in items:
        if batches and fits([*batches[-1], item]):
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches


def pack_sizes(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Split the indices of `sizes` into consecutive batches of up to `limit` in sum.

    Examples
    --------
    >>> pack_sizes([3, 4, 9, 1, 2], 8)
    [[0, 1], [2], [3, 4]]
    """
    return pack(range(len(sizes)), lambda batch: sum(sizes[at] for at in batch) <= limit)


def _kind(device: torch.device | str) -> str:
    name = device if isinstance(device, str) else device.type
    return "cpu" if name == "cpu" else "cuda"
