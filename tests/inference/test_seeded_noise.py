"""What happens between two tokens, on made-up scores."""

from __future__ import annotations

import torch

from qwenvl_kit.inference.seeded_noise import NonFiniteStop, SeededGumbelNoise

IDS = torch.zeros(3, 1, dtype=torch.long)


def test_rows_of_broken_numbers_are_ended_and_the_others_untouched() -> None:
    scores = torch.randn(4, 10)
    scores[1, 3] = torch.nan
    scores[2] = -torch.inf
    scores[3, 0] = torch.inf
    guard = NonFiniteStop(4, 1, eos_id=7, device=torch.device("cpu"))

    guarded = guard(torch.zeros(4, 1), scores.clone())

    assert guard.broken.tolist() == [False, True, True, True]
    assert torch.equal(guarded[0], scores[0])
    assert guarded[1:].argmax(dim=-1).tolist() == [7, 7, 7]


def test_forbidden_tokens_are_no_fault() -> None:
    scores = torch.randn(1, 10)
    scores[0, :9] = -torch.inf
    guard = NonFiniteStop(1, 1, eos_id=0, device=torch.device("cpu"))

    assert torch.equal(guard(IDS[:1], scores.clone()), scores)
    assert not guard.broken.any()


def test_one_broken_beam_breaks_its_row_only() -> None:
    scores = torch.randn(4, 10)
    scores[1, 0] = torch.nan
    guard = NonFiniteStop(2, 2, eos_id=0, device=torch.device("cpu"))
    guard(torch.zeros(4, 1), scores)

    assert guard.broken.tolist() == [True, False]


def test_noisy_choices_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    choice = SeededGumbelNoise(range(4000), torch.device("cpu"))

    drawn = choice(IDS, logits.repeat(4000, 1)).argmax(dim=-1)

    shares = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(shares, logits.softmax(dim=-1), atol=0.03)
    assert shares[3] == 0


def test_a_rows_draws_depend_on_its_seed_alone() -> None:
    logits = torch.randn(3, 50)
    together = SeededGumbelNoise([5, 6, 7], torch.device("cpu"))
    alone = SeededGumbelNoise([7], torch.device("cpu"))

    for _ in range(4):
        assert torch.equal(together(IDS, logits)[2], alone(IDS[:1], logits[2:])[0])
