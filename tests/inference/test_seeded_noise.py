"""Draws are from the softmax, and depend on a row's seed alone."""

from __future__ import annotations

import torch

from qwenvl_kit.inference.seeded_noise import SeededGumbelNoise

IDS = torch.zeros(3, 1, dtype=torch.long)


def test_noisy_noises_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    noise = SeededGumbelNoise(range(4000), torch.device("cpu"))

    drawn = noise(IDS, logits.repeat(4000, 1)).argmax(dim=-1)

    shares = torch.bincount(drawn, minlength=4) / 4000
    assert torch.allclose(shares, logits.softmax(dim=-1), atol=0.03)
    assert shares[3] == 0


def test_a_rows_draws_depend_on_its_seed_alone() -> None:
    logits = torch.randn(3, 50)
    together = SeededGumbelNoise([5, 6, 7], torch.device("cpu"))
    alone = SeededGumbelNoise([7], torch.device("cpu"))

    for _ in range(4):
        assert torch.equal(together(IDS, logits)[2], alone(IDS[:1], logits[2:])[0])
