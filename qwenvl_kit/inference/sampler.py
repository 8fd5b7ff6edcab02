"""Sample the next token of each sequence from its logits, greedily or at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from qwenvl_kit.checkpoints.generation_config import biases, own_processors
from qwenvl_kit.inference.constraint_masks import ConstraintMasks
from qwenvl_kit.inference.sampling_rows import SamplingRows
from qwenvl_kit.inference.seeded_noise import SeededGumbelNoise
from qwenvl_kit.inference.top_k import top_k_candidates

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.inference.constraints import Grammars
    from qwenvl_kit.inference.sequence import Sequence

_TokenLogprob = tuple[int, float]
_MAX_PROMPT_LENGTHS = 256  # whose processors are kept


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """Tokens that were sampled in one step.

    Attributes
    ----------
    ids : list of (int or None)
        The token of each row; None where its logits were not finite.
    logprobs : list of list of (int, float), or None
        For each row the id and the log-probability of its token, and then of the likeliest ones; None unless asked for.
    """

    ids: list[int | None]
    logprobs: list[list[_TokenLogprob]] | None = None


class Sampler:
    """Apply transformers' logits processors to all sequences at once, then take the largest score of each.

    A checkpoint's own processors, such as ``no_repeat_ngram_size``, read a row's tokens on the CPU and run row by row.
    Few checkpoints have any.

    A constraint forbids tokens before all processors, so that top-k and top-p choose among the allowed ones. A
    repetition penalty changes their order only: no penalty allows a forbidden token or ends an answer early.

    Parameters
    ----------
    resolved : ResolvedConfig
        Its ``repetition_penalty``, ``generation``, ``do_sample``, ``temperature``, ``top_k``, ``top_p`` and
        ``logprobs``.
    eos_ids : tuple of int
        Tokens that end an answer.
    grammars : callable, optional
        Return the grammars over the tokens; rows with constraints need them.
    """

    def __init__(
        self,
        resolved: ResolvedConfig,
        eos_ids: tuple[int, ...] = (),
        grammars: Callable[[], Grammars] | None = None,
    ) -> None:
        self._settings, self._eos_ids = dict(resolved.generation), eos_ids
        self._biases = biases(self._settings)
        self._penalty, self._n_alternatives = resolved.repetition_penalty or 1.0, resolved.logprobs
        self._by_prompt_len: dict[int, LogitsProcessorList] = {}
        self._warpers = logits_processors(resolved) if resolved.do_sample else None
        self._temperature, self._top_k, self._top_p = _temperature(resolved), resolved.top_k, resolved.top_p
        self._rows = SamplingRows(keeps_tokens=self._penalty != 1)
        self._masks = None if grammars is None else ConstraintMasks(grammars)

    def sample(self, logits: Tensor, sequences: list[Sequence]) -> SampledTokens:
        """Return the next token of each sequence from float32 logits (B, V), which are overwritten."""
        if self._n_alternatives is None:
            return SampledTokens([_id(token) for token in self.choose(logits, sequences).tolist()])
        # before constraints, penalties and warping
        logprobs = logits.log_softmax(dim=-1)  # (B, V)
        return _sampled(_with_logprobs(self.choose(logits, sequences), logprobs, self._n_alternatives).tolist())

    @torch.inference_mode()
    def choose(self, logits: Tensor, sequences: list[Sequence]) -> Tensor:
        """Return the next tokens (B,) on the logits' device, -1 where a row is not finite; wait for nothing."""
        # -inf is how processors forbid a token; NaN, +inf and a row of -inf only come from overflow. NaN wins in max.
        best, chosen = logits.max(dim=-1)  # (B,), (B,)
        is_constrained = any(one.request.constraint is not None for one in sequences)
        if is_constrained and self._masks is not None:
            self._masks.apply(logits, sequences)
            chosen = logits.argmax(dim=-1)
        if self._penalty != 1 or self._settings or self._warpers is not None:
            self._rows.update(sequences, logits.shape[1], logits.device)
            likeliest, processed = self._pick(self._process(logits, sequences), sequences)
            # Where the checkpoint's own processors forbid all that a constraint allows, the constraint wins.
            chosen = torch.where(likeliest.isneginf(), chosen, processed) if is_constrained else processed
            self._rows.append(chosen)
        return torch.where(best.isfinite(), chosen, -1)

    def _process(self, scores: Tensor, sequences: list[Sequence]) -> Tensor:
        """Return scores (B, V) after all processors but the warpers, in the order of ``generate``."""
        if self._biases:
            scores = torch.cat([self._biases(_ids(one, scores), scores[at, None]) for at, one in enumerate(sequences)])
        if self._penalty != 1:
            scores = self._rows.penalize(scores, self._penalty)
        if self._settings:
            scores = torch.cat(
                [self._own(one, scores)(_ids(one, scores), scores[at, None]) for at, one in enumerate(sequences)]
            )
        return scores

    def _pick(self, scores: Tensor, sequences: list[Sequence]) -> tuple[Tensor, Tensor]:
        """Return the largest score and its token (B,) of each row, after warpers and noise if tokens are drawn."""
        if self._warpers is None:
            return scores.max(dim=-1)
        if scores.device.type != "cpu":
            warped: Tensor = self._warpers(None, scores)  # they read no ids
            return (warped + self._rows.noise(warped)).max(dim=-1)
        draws = torch.cat([_noise(one).draw(scores.shape[1]) for one in sequences])  # (B, V)
        if not self._top_k:
            warped = self._warpers(None, scores)
            return (warped - draws.log_()).max(dim=-1)
        found = top_k_candidates(scores, temperature=self._temperature, top_k=self._top_k, top_p=self._top_p)
        likeliest, at = (found.scores - draws.gather(1, found.ids).log_()).max(dim=-1)
        tokens = found.ids.gather(1, at[:, None])[:, 0]
        for row in (~found.is_complete).nonzero()[:, 0].tolist():
            likeliest[row], tokens[row] = (self._warpers(None, scores[row, None])[0] - draws[row].log_()).max(dim=-1)
        return likeliest, tokens

    def _own(self, sequence: Sequence, scores: Tensor) -> LogitsProcessorList:
        """Return the processors of the checkpoint's settings, made once for all prompts of one length."""
        prompt_len = len(sequence.prompt_ids)
        if prompt_len not in self._by_prompt_len:
            if len(self._by_prompt_len) >= _MAX_PROMPT_LENGTHS:
                self._by_prompt_len.clear()
            self._by_prompt_len[prompt_len] = own_processors(self._settings, prompt_len, self._eos_ids, scores.device)
        return self._by_prompt_len[prompt_len]


def logits_processors(resolved: ResolvedConfig) -> LogitsProcessorList:
    """Return transformers' temperature, top-k and top-p, in the order in which ``generate`` applies them."""
    chain = LogitsProcessorList([TemperatureLogitsWarper(_temperature(resolved))])
    if resolved.top_k:
        chain.append(TopKLogitsWarper(resolved.top_k))
    if resolved.top_p is not None and resolved.top_p < 1:
        chain.append(TopPLogitsWarper(resolved.top_p))
    return chain


def _temperature(resolved: ResolvedConfig) -> float:
    return float(resolved.temperature or 1.0)


@torch.inference_mode()
def _with_logprobs(ids: Tensor, logprobs: Tensor, n_alternatives: int) -> Tensor:
    """Return for each row its token, its log-probability, and those of the likeliest tokens: one transfer for all."""
    values, likeliest = logprobs.topk(min(n_alternatives, logprobs.shape[1]))  # (B, k)
    chosen = logprobs.gather(1, ids[:, None].clamp(min=0))
    # float64 holds every id
    return torch.cat([ids[:, None].double(), chosen.double(), likeliest.double(), values.double()], dim=1)


def _sampled(rows: list[list[float]]) -> SampledTokens:
    """Return the tokens of rows of `_with_logprobs`."""
    n = len(rows[0]) // 2 - 1 if rows else 0
    logprobs = [
        [(int(row[0]), row[1]), *zip(map(int, row[2 : 2 + n]), row[2 + n :], strict=True)]  # its own, the likeliest
        for row in rows
    ]
    return SampledTokens([_id(int(row[0])) for row in rows], logprobs)


def _id(token: int) -> int | None:
    return None if token < 0 else token


def _ids(sequence: Sequence, scores: Tensor) -> Tensor:
    """Return a row's tokens (1, T) on the device of the scores."""
    return sequence.ids[None].to(scores.device)


def _noise(sequence: Sequence) -> SeededGumbelNoise:
    if sequence.noise is None:
        sequence.noise = SeededGumbelNoise([sequence.seed], torch.device("cpu"))
    return sequence.noise
