"""Protocol of a loaded model: encode images, prefill prompts, decode a step.

Sequences have numbered slots in one KV cache. A slot's tokens stand at its front, so sequences of any length share a
step without padding between their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from qwenvl_kit.inference.packing import pack

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MIN_FILL = 0.75  # a prompt shorter than this part of the longest has a pass of its own


@dataclass(frozen=True, slots=True, eq=False)
class PrefillChunk:
    """Tokens of one sequence for one prefill pass: a whole prompt, or the rest of one whose prefix is cached.

    Attributes
    ----------
    slot : int
        The slot of its keys and values.
    ids : int64 Tensor (T,)
        The tokens, at least one.
    positions : int64 Tensor (3, T)
        Temporal, row and column position of each token (M-RoPE).
    cached_len : int
        Tokens in the slot before this pass.
    image_features : float Tensor (n_visual, hidden) or None
        Features of the first image tokens among `ids`, in order, from `ModelRunner.encode_images`; None where there are
        none. Later image tokens, which a model may sample, are embedded like any other.
    """

    slot: int
    ids: Tensor
    positions: Tensor
    cached_len: int = 0
    image_features: Tensor | None = None


def in_pieces(chunks: Sequence[PrefillChunk], max_len: int, *, image_id: int) -> list[list[tuple[int, PrefillChunk]]]:
    """Split chunks into pieces of at most `max_len` tokens and of nearly equal length.

    Returns
    -------
    list of list of (int, PrefillChunk)
        Pieces to prefill in turn, each with the index of its chunk: first the first piece of every chunk, then the
        second of every longer one, and so on. A later piece attends to the earlier ones as cached tokens.
    """
    turns: list[list[tuple[int, PrefillChunk]]] = []
    for at, chunk in enumerate(chunks):
        n_pieces = -(-len(chunk.ids) // max_len)
        for turn, piece in enumerate(_split(chunk, n_pieces, image_id)):
            if turn == len(turns):
                turns.append([])
            turns[turn].append((at, piece))
    return turns


def _split(chunk: PrefillChunk, n_pieces: int, image_id: int) -> list[PrefillChunk]:
    if n_pieces == 1:
        return [chunk]
    pieces: list[PrefillChunk] = []
    features = chunk.image_features
    for ids, positions in zip(chunk.ids.chunk(n_pieces), chunk.positions.chunk(n_pieces, dim=1), strict=True):
        seen = None
        if features is not None:
            seen, features = features.tensor_split([int((ids == image_id).sum())])
        seen = seen if seen is not None and len(seen) else None
        cached_len = chunk.cached_len + sum(len(piece.ids) for piece in pieces)
        pieces.append(PrefillChunk(chunk.slot, ids, positions, cached_len, seen))
    return pieces


def pack_chunks(chunks: Sequence[PrefillChunk], n_tokens: int, *, one_by_one: bool) -> list[list[int]]:
    """Split the indices of chunks into passes of up to `n_tokens` with little padding.

    Flash attention expects padding before tokens that follow cached ones. With it (`one_by_one`) such a chunk has a
    pass of its own.
    """

    def fits(batch: list[int]) -> bool:
        longest, shortest = chunks[batch[0]], chunks[batch[-1]]
        return (
            (longest.cached_len > 0) == (shortest.cached_len > 0)
            and not (one_by_one and shortest.cached_len)
            and len(shortest.ids) >= _MIN_FILL * len(longest.ids)
            and len(batch) * len(longest.ids) <= n_tokens
        )

    return pack(sorted(range(len(chunks)), key=lambda at: (chunks[at].cached_len > 0, -len(chunks[at].ids))), fits)


class ModelRunner(Protocol):
    """A model with its weights and one KV cache, for one thread at a time."""

    @property
    def device(self) -> torch.device:
        """Device of ids, positions and logits."""
        ...

    def encode_images(self, pixel_values: Tensor, grid: Tensor) -> list[Tensor]:
        """Return the visual tokens of images.

        Parameters
        ----------
        pixel_values : float Tensor (P, C·T·p·p)
            Patches of all images, one image after the other, from `InputProcessor.patchify`.
        grid : int64 Tensor (n_images, 3)
            Frames, rows and columns of patches of each image.

        Returns
        -------
        list of Tensor (n_visual, hidden)
            One per image.
        """
        ...

    def resize_cache(self, n_slots: int, capacity: int) -> None:
        """Resize the cache to `n_slots` slots of `capacity` tokens; contents are kept where they fit."""
        ...

    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        """Compute the chunks' keys and values, each in its slot.

        Returns
        -------
        float32 Tensor (n_chunks, V)
            Logits of each chunk's last token.
        """
        ...

    def decode(self, ids: Tensor, positions: Tensor, lengths: Tensor, max_len: int) -> Tensor:
        """Append one token to each of the slots 0 to B-1, without waiting for the device.

        Parameters
        ----------
        ids : int64 Tensor (B,)
            The token of each slot.
        positions : int64 Tensor (B,)
            Its M-RoPE position, whose three rows are equal after a prompt.
        lengths : int64 Tensor (B,)
            Tokens in each slot before the step.
        max_len : int
            Tokens in the longest slot after the step: the largest length and one.

        Returns
        -------
        float32 Tensor (B, V)
            Logits, which the caller may overwrite.
        """
        ...

    def score(self, slot: int, cached_len: int, position: int, continuations: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return how likely tokens are to follow those of a slot, which is left as it is.

        Parameters
        ----------
        slot, cached_len : int
            The slot, and its number of tokens.
        position : int
            M-RoPE position of the first token that follows; its three rows are equal.
        continuations : sequence of sequence of int
            Tokens of each, at least two.

        Returns
        -------
        list of float32 Tensor (n - 1,)
            Log-probability of each token of a continuation given all before it, without its first token.
        """
        ...

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot to another, to share a prefix or to close a gap."""
        ...

    def zero_slot(self, slot: int) -> None:
        """Zero a slot; its non-finite numbers would reach the next sequence, since 0 · NaN is NaN."""
        ...

    def close(self) -> None:
        """Free weights and cache."""
        ...
