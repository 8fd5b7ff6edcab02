"""Hooks that end rows of transformers' ``generate``: at numbers that are not finite, and when a run is cancelled."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, StoppingCriteria

if TYPE_CHECKING:
    from torch import Tensor


class NonFiniteStop(LogitsProcessor):  # type: ignore[misc]  # transformers' bases are untyped
    """End rows whose logits are not finite, instead of letting noise become text.

    Parameters
    ----------
    n_rows : int
        Rows of the batch.
    num_beams : int
        Beams of each row.
    eos_id : int
        The token that ends a row.
    device : torch.device
        Where the scores are.

    Attributes
    ----------
    overflowed : bool Tensor (n_rows,)
        Rows that met NaN or infinite logits.
    """

    def __init__(self, n_rows: int, num_beams: int, eos_id: int, device: torch.device) -> None:
        self.overflowed = torch.zeros(n_rows, dtype=torch.bool, device=device)
        self._num_beams = num_beams
        self._eos_id = eos_id

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B·beams, V) in which overflowed rows can only end."""
        # -inf is how other processors forbid a token; NaN, +inf and a row of -inf only come from overflow.
        overflowed = ~(scores.amax(dim=-1).isfinite())  # (B·beams,), NaN wins in amax
        self.overflowed |= overflowed.view(-1, self._num_beams).any(dim=-1)
        ended = torch.full_like(scores[:1], -torch.inf)
        ended[:, self._eos_id] = 0
        stop = self.overflowed.repeat_interleave(self._num_beams)
        return torch.where(stop[:, None], ended, scores)


class EventStoppingCriteria(StoppingCriteria):  # type: ignore[misc]
    """Stop the whole batch between two tokens once an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Return whether each row is stopped, bool (B,)."""
        return torch.full((input_ids.shape[0],), self._event.is_set(), dtype=torch.bool, device=input_ids.device)
