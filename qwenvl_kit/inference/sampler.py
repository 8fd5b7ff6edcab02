"""Sample the next token of each sequence from its logits, greedily or at random."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qwenvl_kit.checkpoints.generation_config import biases, own_processors
from qwenvl_kit.inference.seeded_noise import SeededGumbelNoise

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.inference.sequence import Sequence

_MAX_PROMPT_LENGTHS = 256  # whose processors are kept


class Sampler:
    """Apply transformers' logits processors to each sequence by itself, then take the largest score.

    Parameters
    ----------
    resolved : ResolvedConfig
        Its ``repetition_penalty``, ``generation``, ``do_sample``, ``temperature``, ``top_k`` and ``top_p``.
    eos_ids : tuple of int
        Tokens that end an answer.
    """

    def __init__(self, resolved: ResolvedConfig, eos_ids: tuple[int, ...] = ()) -> None:
        self._settings, self._eos_ids = dict(resolved.generation), eos_ids
        self._biases = biases(self._settings)
        if resolved.repetition_penalty != 1:
            self._biases.append(RepetitionPenaltyLogitsProcessor(resolved.repetition_penalty))
        self._by_prompt_len: dict[int, LogitsProcessorList] = {}
        self._processors = logits_processors(resolved) if resolved.do_sample else None

    def sample(self, logits: Tensor, sequences: list[Sequence]) -> list[int | None]:
        """Return the next token of each sequence from float32 logits (B, V); None where they are not finite."""
        # -inf is how processors forbid a token; NaN, +inf and a row of -inf only come from overflow. NaN wins in max.
        best, chosen = logits.max(dim=-1)  # (B,), (B,)
        finite: list[bool] = best.isfinite().tolist()
        if self._biases or self._settings or self._processors is not None:
            chosen = torch.stack([self._choose(logits[at : at + 1], one) for at, one in enumerate(sequences)])
        tokens: list[int] = chosen.tolist()
        return [token if is_finite else None for token, is_finite in zip(tokens, finite, strict=True)]

    def _choose(self, scores: Tensor, sequence: Sequence) -> Tensor:
        ids = sequence.ids[None].to(scores.device)  # (1, T)
        scores = self._biases(ids, scores)  # (1, V)
        if self._settings:
            scores = self._own(len(sequence.prompt_ids), scores.device)(ids, scores)
        if self._processors is not None:
            scores = _noise(sequence, scores.device)(ids, self._processors(ids, scores))
        return scores[0].argmax()

    def _own(self, prompt_len: int, device: torch.device) -> LogitsProcessorList:
        """Return the processors of the checkpoint's settings, made once for all prompts of one length."""
        if prompt_len not in self._by_prompt_len:
            if len(self._by_prompt_len) >= _MAX_PROMPT_LENGTHS:
                self._by_prompt_len.clear()
            self._by_prompt_len[prompt_len] = own_processors(self._settings, prompt_len, self._eos_ids, device)
        return self._by_prompt_len[prompt_len]


def logits_processors(resolved: ResolvedConfig) -> LogitsProcessorList:
    """Return transformers' temperature, top-k and top-p, in the order in which ``generate`` applies them."""
    chain = LogitsProcessorList([TemperatureLogitsWarper(float(resolved.temperature or 1.0))])
    if resolved.top_k:
        chain.append(TopKLogitsWarper(resolved.top_k))
    if resolved.top_p is not None and resolved.top_p < 1:
        chain.append(TopPLogitsWarper(resolved.top_p))
    return chain


def _noise(sequence: Sequence, device: torch.device) -> SeededGumbelNoise:
    if sequence.noise is None:
        seed = sequence.request.seed
        sequence.noise = SeededGumbelNoise([secrets.randbits(63) if seed is None else seed], device)
    return sequence.noise
