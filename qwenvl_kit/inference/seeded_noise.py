"""What happens between two tokens: guards, seeded sampling and cancelling, as hooks of ``generate``.

They know rows of a batch and token ids; neither pictures nor requests.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.checkpoints.resolve import ResolvedConfig


class NonFiniteStop(LogitsProcessor):  # type: ignore[misc]  # transformers' bases are untyped
    """Ends a row whose logits are not finite and remembers it, instead of letting noise become text.

    Parameters
    ----------
    n_rows : int
        Rows of the batch.
    num_beams : int
        Beams of each row.
    eos_id : int
        The token that ends a row.

    Attributes
    ----------
    broken : bool Tensor (n_rows,)
        Rows that met NaN or infinite logits.
    """

    def __init__(self, n_rows: int, num_beams: int, eos_id: int, device: torch.device) -> None:
        self.broken = torch.zeros(n_rows, dtype=torch.bool, device=device)
        self._num_beams = num_beams
        self._eos_id = eos_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B·beams, V) with broken rows led to their end."""
        # -inf is how other processors forbid a token; NaN, +inf and a row of -inf only come from overflow.
        broken = ~(scores.amax(dim=-1).isfinite())  # (B·beams,), NaN wins in amax
        self.broken |= broken.view(-1, self._num_beams).any(dim=-1)
        ended = torch.full_like(scores[:1], -torch.inf)
        ended[:, self._eos_id] = 0
        stop = self.broken.repeat_interleave(self._num_beams)
        return torch.where(stop[:, None], ended, scores)


class SeededGumbelNoise(LogitsProcessor):  # type: ignore[misc]
    """Samples with a generator per row, so that a row's answer does not depend on the rows beside it.

    Adding Gumbel noise and taking the largest draws from the softmax (Gumbel 1954; Maddison et al. 2014,
    https://arxiv.org/abs/1411.0030), so ``generate`` runs its greedy loop over noisy scores. Its own sampling draws
    for the whole batch from the one global generator, whose state depends on every other row.

    Parameters
    ----------
    seeds : sequence of int
        One per row.
    device : torch.device
        Where the scores are.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) with noise: the largest is a draw from their softmax."""
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in enumerate(self._generators):
            noise[row].exponential_(generator=generator)
        return scores - noise.log()  # -log of an exponential draw is a Gumbel draw


class EventStoppingCriteria(StoppingCriteria):  # type: ignore[misc]
    """Stops the whole batch between two tokens once an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Whether each row is stopped."""
        return torch.full((input_ids.shape[0],), self._event.is_set(), dtype=torch.bool, device=input_ids.device)


def logits_processors(resolved: ResolvedConfig) -> LogitsProcessorList:
    """Temperature, top-k and top-p as transformers has them, in the order in which ``generate`` applies them."""
    chain = LogitsProcessorList([TemperatureLogitsWarper(float(resolved.temperature or 1.0))])
    if resolved.top_k:
        chain.append(TopKLogitsWarper(resolved.top_k))
    if resolved.top_p is not None and resolved.top_p < 1:
        chain.append(TopPLogitsWarper(resolved.top_p))
    return chain
