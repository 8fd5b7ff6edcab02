"""Sampling of all rows at once gives each row the token that transformers' processors give it alone."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.fake_model_runner import PlainProcessor, requests_of, resolved_of
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from qwenvl_kit.checkpoints.generation_config import biases, own_processors
from qwenvl_kit.checkpoints.resolve import ResolvedConfig
from qwenvl_kit.inference.sampler import Sampler, logits_processors
from qwenvl_kit.inference.seeded_noise import SeededGumbelNoise, counter_gumbel_noise
from qwenvl_kit.inference.sequence import Sequence

VOCABULARY = 300
SAMPLING = {"do_sample": True, "temperature": 1.7, "top_k": 40, "top_p": 0.8}
OWN: dict[str, Any] = {
    "sequence_bias": [[[7], -3.0], [[8, 9], 4.0]],
    "no_repeat_ngram_size": 2,
    "min_new_tokens": 3,
    "suppress_tokens": [11],
}


class OneByOne:
    """Choose a row's tokens from its own logits, with transformers' processors and a generator of its own."""

    def __init__(self, resolved: Any) -> None:
        self._resolved, self._noise = resolved, dict[int, SeededGumbelNoise]()

    def choose(self, logits: Tensor, sequence: Sequence) -> int:
        ids, scores = sequence.ids[None], logits[None]
        resolved, settings = self._resolved, dict(self._resolved.generation)
        scores = biases(settings)(ids, scores)
        if resolved.repetition_penalty != 1:
            scores = RepetitionPenaltyLogitsProcessor(resolved.repetition_penalty)(ids, scores)
        scores = own_processors(settings, len(sequence.prompt_ids), (1,), torch.device("cpu"))(ids, scores)
        if resolved.do_sample:
            row = sequence.request.row
            noise = self._noise.setdefault(row, SeededGumbelNoise([sequence.seed], torch.device("cpu")))
            scores = noise(ids, logits_processors(resolved)(ids, scores))
        return int(scores[0].argmax())


def sequences_of(n: int) -> list[Sequence]:
    return [PlainProcessor().encode(request) for request in requests_of([(row, row % 5, 30) for row in range(n)])]


def resolved_with(penalty: float, own: tuple[tuple[str, Any], ...] = (), **options: Any) -> ResolvedConfig:
    return replace(resolved_of(**options), repetition_penalty=penalty, generation=own)


@pytest.mark.parametrize("penalty", [1.0, 1.05, 0.7])
@pytest.mark.parametrize("own", [(), tuple(OWN.items())], ids=["plain", "own"])
@pytest.mark.parametrize("options", [{}, SAMPLING], ids=["greedy", "sampling"])
def test_tokens_are_those_of_each_row_alone_while_rows_join_leave_and_move(
    penalty: float, own: tuple[tuple[str, Any], ...], options: dict[str, Any]
) -> None:
    resolved = resolved_with(penalty, own, **options)
    sampler, alone = Sampler(resolved, (1,)), OneByOne(resolved)
    draw, chance = torch.Generator().manual_seed(0), random.Random(0)
    waiting, running = sequences_of(24), list[Sequence]()
    while waiting or running:
        if (
            waiting and len(running) < 7 and (not running or chance.random() < 0.5)
        ):  # some join: their first tokens come by themselves
            batch = [waiting.pop() for _ in range(min(len(waiting), chance.randint(1, 3)))]
            running += batch
        else:
            batch = running
        logits = (torch.randn(len(batch), VOCABULARY, generator=draw) * 4).bfloat16().float()  # with ties
        wanted = [alone.choose(row, one) for row, one in zip(logits, batch, strict=True)]
        assert sampler.sample(logits, batch).ids == wanted
        for token, one in zip(wanted, batch, strict=True):
            one.append_token(token, (), stop_repetition=False)
        for one in [one for one in running if one.is_finished or chance.random() < 0.03]:
            gap, last = running.index(one), running.pop()  # the last takes the place of one that leaves
            if last is not one:
                running[gap] = last


def test_a_row_that_is_not_finite_has_no_token_and_changes_no_other() -> None:
    resolved = resolved_with(1.3, **SAMPLING)
    sequences = sequences_of(4)
    logits = torch.randn(4, VOCABULARY)
    wanted = Sampler(resolved).sample(logits.clone(), sequences_of(4)).ids
    logits[1, 5], logits[2], logits[3, 0] = torch.nan, -torch.inf, torch.inf

    assert Sampler(resolved).sample(logits, sequences).ids == [wanted[0], None, None, None]


def test_tokens_that_a_model_reads_but_cannot_generate_have_no_penalty() -> None:
    resolved = resolved_with(2.0)
    sequences = sequences_of(2)
    logits = torch.randn(2, 30)  # prompts have tokens up to 42

    whole = torch.nn.functional.pad(logits[:1], (0, 20))
    wanted = RepetitionPenaltyLogitsProcessor(2.0)(sequences[0].ids[None], whole)[:, :30].argmax().item()
    assert Sampler(resolved).sample(logits, sequences).ids[0] == wanted


def test_counted_noise_follows_the_softmax_and_has_no_equal_steps() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    for seeds, steps in ((torch.arange(20_000), torch.zeros(20_000)), (torch.full((20_000,), 5), torch.arange(20_000))):
        drawn = (logits + counter_gumbel_noise(seeds, steps.long(), 4)).argmax(dim=-1)

        shares = torch.bincount(drawn, minlength=4) / len(drawn)
        assert torch.allclose(shares, logits.softmax(dim=-1), atol=0.015)
        assert shares[3] == 0
        repeats = (drawn[1:] == drawn[:-1]).float().mean()
        assert abs(repeats - (logits.softmax(dim=-1) ** 2).sum()) < 0.02, "a step says nothing of the next"


def test_counted_noise_depends_on_seed_and_step_alone_and_is_fixed() -> None:
    together = counter_gumbel_noise(torch.tensor([5, 2**63 - 1, 7]), torch.tensor([0, 3, 9]), 1000)
    alone = counter_gumbel_noise(torch.tensor([7]), torch.tensor([9]), 1000)

    assert torch.equal(together[2], alone[0])
    assert together.isfinite().all()
    torch.testing.assert_close(together[:, 999], KNOWN, msg="stored samples would change")


KNOWN = torch.tensor([6.055612, -0.230326, -0.907832])
