"""Top-k and top-p of a few columns leave the tokens that transformers leaves of the whole vocabulary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.fake_model_runner import PlainProcessor, requests_of, resolved_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qwenvl_kit.checkpoints.resolve import ResolvedConfig
from qwenvl_kit.inference.sampler import Sampler, logits_processors
from qwenvl_kit.inference.seeded_noise import SeededGumbelNoise
from qwenvl_kit.inference.top_k import top_k_candidates

N_VOCAB = 1003  # no whole number of lanes
TOP_P = st.sampled_from([None, 1e-6, 0.001, 0.25, 0.5, 0.75, 0.8, 0.999, 1.0])


def logits_of(draw: int, levels: int | None, n_allowed: int) -> Tensor:
    """Return logits (4, V), of a few levels only, most of them forbidden where few are allowed."""
    generator = torch.Generator().manual_seed(draw)
    logits = torch.randn(4, N_VOCAB, generator=generator) * 3
    if levels is not None:
        logits = (logits * levels).round() / levels
    forbidden = torch.rand(4, N_VOCAB, generator=generator).argsort(dim=1) >= n_allowed
    return logits.masked_fill(forbidden, -torch.inf)


def sampling(top_k: int, top_p: float | None, temperature: float) -> ResolvedConfig:
    return replace(resolved_of(do_sample=True, temperature=temperature, top_k=top_k), top_p=top_p)


def warped(logits: Tensor, top_k: int, top_p: float | None, temperature: float) -> Tensor:
    return logits_processors(sampling(top_k, top_p, temperature))(None, logits)


@given(
    st.integers(0, 2**31),
    st.sampled_from([None, 1, 8, 200]),
    st.sampled_from([1, 3, 40, 900, N_VOCAB]),
    st.integers(1, N_VOCAB + 5),
    TOP_P,
    st.sampled_from([0.05, 0.7, 1.0, 1.7]),
)
def test_scores_of_complete_rows_are_those_of_transformers_to_the_last_bit(
    draw: int, levels: int | None, n_allowed: int, top_k: int, top_p: float | None, temperature: float
) -> None:
    logits = logits_of(draw, levels, n_allowed)
    wanted = warped(logits, top_k, top_p, temperature)

    found = top_k_candidates(logits, temperature=temperature, top_k=top_k, top_p=top_p)

    scores = torch.full_like(logits, -torch.inf).scatter(1, found.ids, found.scores)
    assert torch.equal(scores[found.is_complete], wanted[found.is_complete])
    if levels is None:
        assert found.is_complete.all(), "only ties at the k-th token need the whole vocabulary"


@pytest.mark.parametrize("top_p", [None, 0.5])
def test_equal_logits_are_a_row_that_only_the_whole_vocabulary_tells(top_p: float | None) -> None:
    found = top_k_candidates(torch.zeros(1, N_VOCAB), temperature=1.0, top_k=5, top_p=top_p)

    assert not found.is_complete.any()


@given(st.integers(0, 2**31), st.sampled_from([None, 1, 8]), st.integers(1, 60), TOP_P)
def test_draws_are_those_of_transformers_warpers_and_the_rows_own_noise(
    draw: int, levels: int | None, top_k: int, top_p: float | None
) -> None:
    resolved = sampling(top_k, top_p, 0.8)
    sequences = [PlainProcessor().encode(request) for request in requests_of([(row, row, 30) for row in range(4)])]
    noises = [SeededGumbelNoise([one.seed], torch.device("cpu")) for one in sequences]
    sampler = Sampler(resolved)
    for step in range(3):
        logits = logits_of(draw + step, levels, N_VOCAB)
        scores = logits_processors(resolved)(None, logits)
        wanted = [int(noise(None, scores[row, None]).argmax()) for row, noise in enumerate(noises)]

        assert sampler.sample(logits.clone(), sequences).ids == wanted
