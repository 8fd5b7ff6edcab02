"""KV cache with numbered slots, written in place, as transformers' attention layers use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from qwenvl_kit.inference.patches import upload

if TYPE_CHECKING:
    from torch import Tensor


class KVWrite(Protocol):
    """Write the keys or values of one pass into a layer's, and select what the pass attends to."""

    def __call__(self, held: Tensor, new: Tensor) -> Tensor:
        """Write `new` (B, H, T, D) into `held` (slots, H, capacity, D); return what the pass attends to."""
        ...


class SlottedKVCache:
    """KV cache of one model; each layer's part is allocated on that layer's device.

    transformers' layers only call `update`.

    Parameters
    ----------
    is_token_major : bool
        Order the memory as (slots, capacity, H, D), as `attend_slots` needs it; shapes stay.

    Attributes
    ----------
    layers : dict of int to (Tensor, Tensor)
        Keys and values (slots, H, capacity, D) of each layer.
    write : KVWrite or None
        Set by the model runner before each pass.
    """

    def __init__(self, *, is_token_major: bool = False) -> None:
        self._is_token_major = is_token_major
        self.write: KVWrite | None = None
        self._size = (0, 0)  # slots, tokens
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def capacity(self) -> int:
        """Tokens that a slot has room for."""
        return self._size[1]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write a layer's keys and values (B, H, T, D) of a pass; return those to attend to."""
        assert self.write is not None
        held = self.layers.get(layer)
        if held is None:
            held = self.layers[layer] = self._make(keys), self._make(values)
        return self.write(held[0], keys), self.write(held[1], values)

    def resize_cache(self, n_slots: int, capacity: int) -> None:
        """Resize to `n_slots` slots of `capacity` tokens; contents are kept where they fit."""
        self._size = (n_slots, capacity)
        if not n_slots * capacity:
            self.layers.clear()
        for layer, (keys, values) in self.layers.items():
            self.layers[layer] = self._resized(keys), self._resized(values)

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of a slot to another."""
        for held in self.layers.values():
            for part in held:
                part[target, :, :length] = part[source, :, :length]

    def zero_slot(self, slot: int) -> None:
        """Zero a slot."""
        for held in self.layers.values():
            for part in held:
                part[slot].zero_()

    def _make(self, like: Tensor) -> Tensor:
        n_slots, capacity = self._size
        n_heads, head_dim = like.shape[1], like.shape[3]
        shape = (
            (n_slots, capacity, n_heads, head_dim) if self._is_token_major else (n_slots, n_heads, capacity, head_dim)
        )
        # zeros, not empty: masked tokens still take part in sums, where 0 · NaN is NaN
        made = torch.zeros(shape, dtype=like.dtype, device=like.device)
        return made.transpose(1, 2) if self._is_token_major else made

    def _resized(self, held: Tensor) -> Tensor:
        made = self._make(held)
        n_slots, length = min(len(held), len(made)), min(held.shape[2], made.shape[2])
        made[:n_slots, :, :length] = held[:n_slots, :, :length]
        return made


class PrefillWrite:
    """Write whole prompts to the front of their slots; the pass attends to its own tokens only.

    Parameters
    ----------
    slots, lengths : sequence of int
        Slot of each row, and its number of tokens without padding.
    """

    def __init__(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        self._rows = list(zip(slots, lengths, strict=True))

    def __call__(self, held: Tensor, new: Tensor) -> Tensor:
        """Write each row without its padding, which may not be finite; return `new`."""
        for row, (slot, length) in zip(new, self._rows, strict=True):
            held[slot, :, :length] = row[:, :length]
        return new


class ExtendWrite:
    """Write tokens that follow cached ones.

    Parameters
    ----------
    slots, cached, lengths : sequence of int
        Slot of each row, its number of cached tokens, and of those that follow.
    """

    def __init__(self, slots: Sequence[int], cached: Sequence[int], lengths: Sequence[int]) -> None:
        self._rows = list(zip(slots, cached, lengths, strict=True))
        self._slots = {torch.device("cpu"): torch.tensor(slots)}  # by device; a copy in every layer would wait for it
        self._max_len = max(start + length for _, start, length in self._rows)

    def __call__(self, held: Tensor, new: Tensor) -> Tensor:
        """Write each row behind its cached tokens; return the slots' tokens up to the longest."""
        for row, (slot, start, length) in zip(new, self._rows, strict=True):
            held[slot, :, start : start + length] = row[:, :length]
        slots = self._slots.get(held.device)
        if slots is None:
            slots = self._slots[held.device] = upload(self._slots[torch.device("cpu")], held.device)
        return held[slots, :, : self._max_len]


class BranchWrite:
    """Write nothing: the tokens of each row follow a slot's cached ones for this pass only.

    Parameters
    ----------
    slot, cached_len : int
        The slot, and its number of cached tokens.
    """

    def __init__(self, slot: int, cached_len: int) -> None:
        self._slot, self._cached_len = slot, cached_len

    def __call__(self, held: Tensor, new: Tensor) -> Tensor:
        """Return the slot's tokens and, behind them, `new` (B, H, T, D)."""
        cached = held[self._slot, None, :, : self._cached_len].expand(len(new), -1, -1, -1)
        return torch.cat([cached, new], dim=2)


class NoWrite:
    """Write nothing: the pass attends to its own tokens only, and may be differentiated."""

    def __call__(self, held: Tensor, new: Tensor) -> Tensor:
        """Return `new`."""
        return new


class DecodeWrite:
    """Write one token to each of the first slots.

    Parameters
    ----------
    lengths : int64 Tensor (B,)
        Tokens in each slot before.
    max_len : int or None
        Tokens to attend to; more than the largest length. None for whole slots.
    """

    def __init__(self, lengths: Tensor, max_len: int | None) -> None:
        self._rows = torch.arange(len(lengths), device=lengths.device)
        self._lengths, self._max_len = lengths, max_len

    def __call__(self, held: Tensor, new: Tensor) -> Tensor:
        """Write each row's token behind its others; return the first slots' tokens up to `max_len`."""
        held[self._rows.to(held.device), :, self._lengths.to(held.device)] = new[:, :, 0]
        return held[: len(new), :, : self._max_len]
