"""A loaded model as functions of their own: look at pictures, read prompts, take a step. Decode loops stand on these.

Rows live in numbered slots of one cache of keys and values. A slot's tokens stand at its front, so rows of any length
share a step without padding between their tokens. What is sampled, who leaves and who joins is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PrefillChunk:
    """Tokens that one row reads in one pass: a whole prompt, or the rest of one whose beginning stands in its slot.

    Attributes
    ----------
    slot : int
        Where its keys and values go.
    ids : int64 Tensor (T,)
        The tokens, at least one.
    positions : int64 Tensor (3, T)
        Temporal, row and column position of each token (M-RoPE).
    cached_len : int
        Tokens that the slot holds already.
    image_features : float Tensor (n_visual, hidden) or None
        Features of the first image tokens among `ids`, in order, from `ModelRunner.encode_images`; None where there are
        none. Later image tokens, which a model may sample, are embedded like any other.
    """

    slot: int
    ids: Tensor
    positions: Tensor
    cached_len: int = 0
    image_features: Tensor | None = None


class ModelRunner(Protocol):
    """A model with its weights and one cache; one thread at a time may use it."""

    @property
    def device(self) -> torch.device:
        """Where ids, positions and logits are."""
        ...

    def encode_images(self, pixel_values: Tensor, grid: Tensor) -> list[Tensor]:
        """Visual tokens of pictures.

        Parameters
        ----------
        pixel_values : float Tensor (P, C·T·p·p)
            Patches of all pictures, one picture after the other, as the image processor cuts them.
        grid : int64 Tensor (n_pictures, 3)
            Frames, rows and columns of patches of each picture.

        Returns
        -------
        list of Tensor (n_visual, hidden)
            One per picture.
        """
        ...

    def resize_cache(self, n_slots: int, capacity: int) -> None:
        """Make room for `n_slots` rows of `capacity` tokens; what slots hold is kept where it fits the new size."""
        ...

    def prefill(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        """Prompt pass: put the chunks' keys and values into their slots.

        Returns
        -------
        float32 Tensor (n_chunks, V)
            Logits of each chunk's last token.
        """
        ...

    def decode(self, ids: Tensor, positions: Tensor, lengths: Tensor) -> Tensor:
        """Decode step: append one token to each of the slots 0 to B-1.

        Parameters
        ----------
        ids : int64 Tensor (B,)
            The token of each slot.
        positions : int64 Tensor (B,)
            Its position; the three rows of M-RoPE are equal after a prompt.
        lengths : int64 Tensor (B,)
            Tokens that each slot holds before the step.

        Returns
        -------
        float32 Tensor (B, V)
            Logits.
        """
        ...

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot to another, to share a prefix or to close a gap."""
        ...

    def zero_slot(self, slot: int) -> None:
        """Forget what a slot holds: numbers in it that are not finite must not meet those of the next row."""
        ...

    def close(self) -> None:
        """Free weights and cache."""
        ...
