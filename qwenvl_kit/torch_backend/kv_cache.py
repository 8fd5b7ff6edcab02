"""Keys and values of rows in numbered slots, written in place: what transformers' attention layers call a cache.

Which row sits where, and what is attended to, the model runner says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from torch import Tensor


class KVWrite(Protocol):
    """How one pass writes its keys (or values) into those of a layer, and what it then attends to."""

    def __call__(self, held: Tensor, new: Tensor) -> Tensor:
        """Write `new` (B, H, T, D) into `held` (slots, H, capacity, D); give what the pass attends to."""
        ...


class SlottedKVCache:
    """The cache of one model; each layer's part is made where that layer computes.

    transformers' layers ask a cache for nothing but `update`.

    Attributes
    ----------
    write : KVWrite or None
        Set by the model runner before each pass.
    """

    def __init__(self) -> None:
        self.write: KVWrite | None = None
        self._size = (0, 0)  # slots, tokens
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write a pass's keys and values (B, H, T, D) of a layer; give those to attend to."""
        assert self.write is not None
        held = self._layers.get(layer)
        if held is None:
            held = self._layers[layer] = self._make(keys), self._make(values)
        return self.write(held[0], keys), self.write(held[1], values)

    def resize_cache(self, n_slots: int, capacity: int) -> None:
        """Change the size; what slots hold is kept where it fits."""
        self._size = (n_slots, capacity)
        if not n_slots * capacity:
            self._layers.clear()
        for layer, (keys, values) in self._layers.items():
            self._layers[layer] = self._resized(keys), self._resized(values)

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of a slot to another."""
        for held in self._layers.values():
            for part in held:
                part[target, :, :length] = part[source, :, :length]

    def zero_slot(self, slot: int) -> None:
        """Make a slot what it was at first."""
        for held in self._layers.values():
            for part in held:
                part[slot].zero_()

    def _make(self, like: Tensor) -> Tensor:
        n_slots, capacity = self._size
        # zeros, not empty: masked tokens still take part in sums, where NaN times nothing is NaN
        return torch.zeros(n_slots, like.shape[1], capacity, like.shape[3], dtype=like.dtype, device=like.device)

    def _resized(self, held: Tensor) -> Tensor:
        made = self._make(held)
        n_slots, length = min(len(held), len(made)), min(held.shape[2], made.shape[2])
        made[:n_slots, :, :length] = held[:n_slots, :, :length]
        return made


class PrefillWrite:
    """Whole prompts, each from the front of its slot: a pass that attends to its own tokens only.

    Parameters
    ----------
    slots, lengths : sequence of int
        Of each row: its slot, and how many of its tokens are no padding.
    """

    def __init__(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        self._rows = list(zip(slots, lengths, strict=True))

    def __call__(self, held: Tensor, new: Tensor) -> Tensor:
        """Write each row at the front of its slot, without what pads it: that may be anything but finite."""
        for row, (slot, length) in zip(new, self._rows, strict=True):
            held[slot, :, :length] = row[:, :length]
        return new


class ExtendWrite:
    """What follows tokens that the slots hold already.

    Parameters
    ----------
    slots, pasts, lengths : sequence of int
        Of each row: its slot, what that holds, how many tokens follow.
    """

    def __init__(self, slots: Sequence[int], pasts: Sequence[int], lengths: Sequence[int]) -> None:
        self._rows = list(zip(slots, pasts, lengths, strict=True))
        self._slots = torch.tensor(slots)
        self._n_most = max(past + length for _, past, length in self._rows)

    def __call__(self, held: Tensor, new: Tensor) -> Tensor:
        """Write each row behind its past; give the slots' tokens up to the longest."""
        for row, (slot, past, length) in zip(new, self._rows, strict=True):
            held[slot, :, past : past + length] = row[:, :length]
        return held[self._slots.to(held.device), :, : self._n_most]


class DecodeWrite:
    """One token for each of the first slots.

    Parameters
    ----------
    lengths : int64 Tensor (B,)
        Tokens that each slot holds.
    n_most : int
        The largest of them, and one, or more.
    """

    def __init__(self, lengths: Tensor, n_most: int) -> None:
        self._rows, self._lengths, self._n_most = torch.arange(len(lengths), device=lengths.device), lengths, n_most

    def __call__(self, held: Tensor, new: Tensor) -> Tensor:
        """Write each row's token behind its others; give the first slots' tokens up to `n_most`."""
        held[self._rows.to(held.device), :, self._lengths.to(held.device)] = new[:, :, 0]
        return held[: len(new), :, : self._n_most]
