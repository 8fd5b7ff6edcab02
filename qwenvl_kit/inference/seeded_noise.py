"""Random noise on logits, with a generator for each row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from torch import Tensor


class SeededGumbelNoise(LogitsProcessor):  # type: ignore[misc]  # transformers' bases are untyped
    """Sample with a generator per row, so that an answer does not depend on the rows beside it.

    Adding Gumbel noise and taking the largest draws from the softmax (Gumbel 1954; Maddison et al. 2014,
    https://arxiv.org/abs/1411.0030). transformers' own sampling draws for the whole batch from one global generator,
    whose state depends on every other row.

    Parameters
    ----------
    seeds : iterable of int
        One per row.
    device : torch.device
        Where the scores are.
    """

    def __init__(self, seeds: Iterable[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) with noise; the largest of a row is a draw from its softmax."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in enumerate(self._generators):
            noise[row].exponential_(generator=generator)
        return scores - noise.log()  # -log of an exponential draw is a Gumbel draw
