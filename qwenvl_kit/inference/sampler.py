"""Logits of rows in, a token for each out: greedy or sampled, with transformers' own processors.

Every row is treated as if it were alone; models and slots are unknown here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from qwenvl_kit.checkpoints.generation_config import biases, own_processors
from qwenvl_kit.inference.seeded_noise import logits_processors

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.inference.sequence import Sequence


_MOST_LENGTHS = 256  # of prompts, whose processors are kept


class Sampler:
    """Chooses tokens as `resolved` says.

    Parameters
    ----------
    resolved : ResolvedConfig
        Its ``repetition_penalty``, ``generation``, ``do_sample``, ``temperature``, ``top_k`` and ``top_p``.
    eos_ids : tuple of int
        Tokens that end an answer.
    """

    def __init__(self, resolved: ResolvedConfig, eos_ids: tuple[int, ...] = ()) -> None:
        self._settings, self._eos_ids = dict(resolved.generation), eos_ids
        self._first = biases(self._settings)
        if resolved.repetition_penalty != 1:
            self._first.append(RepetitionPenaltyLogitsProcessor(resolved.repetition_penalty))
        self._then: dict[int, LogitsProcessorList] = {}  # by the length of the prompt
        self._warpers = logits_processors(resolved) if resolved.do_sample else None

    def sample(self, logits: Tensor, rows: list[Sequence]) -> list[int | None]:
        """The next token of each row from float32 logits (B, V); None where they are not finite."""
        # -inf is how processors forbid a token; NaN, +inf and a row of -inf only come from overflow. NaN wins in max.
        best, chosen = logits.max(dim=-1)  # (B,), (B,)
        finite: list[bool] = best.isfinite().tolist()
        if self._first or self._settings or self._warpers is not None:
            chosen = torch.stack([self._process(logits[at : at + 1], row) for at, row in enumerate(rows)])
        tokens: list[int] = chosen.tolist()
        return [token if is_finite else None for token, is_finite in zip(tokens, finite, strict=True)]

    def _process(self, scores: Tensor, row: Sequence) -> Tensor:
        ids = row.ids[None].to(scores.device)  # (1, T)
        scores = self._first(ids, scores)  # (1, V)
        if self._settings:
            scores = self._own(len(row.encoded.ids), scores.device)(ids, scores)
        if self._warpers is not None:
            scores = row.noise(ids, self._warpers(ids, scores))
        return scores[0].argmax()

    def _own(self, prompt_length: int, device: torch.device) -> LogitsProcessorList:
        """Those of the checkpoint's settings, made once for all rows whose prompts are of one length."""
        if prompt_length not in self._then:
            if len(self._then) >= _MOST_LENGTHS:
                self._then.clear()
            self._then[prompt_length] = own_processors(self._settings, prompt_length, self._eos_ids, device)
        return self._then[prompt_length]
