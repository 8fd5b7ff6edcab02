"""Logits of rows in, a token for each out: greedy or sampled, with transformers' own processors.

Every row is treated as if it were alone; models and slots are unknown here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from qwenvl_kit.backends.steps import warpers

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.backends.rows import Row
    from qwenvl_kit.effective import Effective


class Chooser:
    """Chooses tokens as `effective` says.

    Parameters
    ----------
    effective : Effective
        Its ``repetition_penalty``, ``do_sample``, ``temperature``, ``top_k`` and ``top_p``.
    """

    def __init__(self, effective: Effective) -> None:
        penalty = effective.repetition_penalty
        self._penalty = None if penalty == 1 else RepetitionPenaltyLogitsProcessor(penalty)
        self._warpers = warpers(effective) if effective.do_sample else None

    def choose(self, logits: Tensor, rows: Sequence[Row]) -> list[int | None]:
        """The next token of each row from float32 logits (B, V); None where they are not finite."""
        # -inf is how processors forbid a token; NaN, +inf and a row of -inf only come from overflow. NaN wins in max.
        best, chosen = logits.max(dim=-1)  # (B,), (B,)
        finite: list[bool] = best.isfinite().tolist()
        if self._penalty is not None or self._warpers is not None:
            chosen = torch.stack([self._process(logits[at : at + 1], row) for at, row in enumerate(rows)])
        tokens: list[int] = chosen.tolist()
        return [token if is_finite else None for token, is_finite in zip(tokens, finite, strict=True)]

    def _process(self, scores: Tensor, row: Row) -> Tensor:
        ids = row.ids[None].to(scores.device)  # (1, T)
        if self._penalty is not None:
            scores = self._penalty(ids, scores)  # (1, V)
        if self._warpers is not None:
            scores = row.choice(ids, self._warpers(ids, scores))
        return scores[0].argmax()
