"""What ends rows of ``generate``, on made-up scores."""

from __future__ import annotations

import torch

from qwenvl_kit.torch_backend.stopping import NonFiniteStop

IDS = torch.zeros(3, 1, dtype=torch.long)


def test_rows_of_broken_numbers_are_ended_and_the_others_untouched() -> None:
    scores = torch.randn(4, 10)
    scores[1, 3] = torch.nan
    scores[2] = -torch.inf
    scores[3, 0] = torch.inf
    stop = NonFiniteStop(4, 1, eos_id=7, device=torch.device("cpu"))

    stopped = stop(torch.zeros(4, 1), scores.clone())

    assert stop.overflowed.tolist() == [False, True, True, True]
    assert torch.equal(stopped[0], scores[0])
    assert stopped[1:].argmax(dim=-1).tolist() == [7, 7, 7]


def test_forbidden_tokens_are_no_fault() -> None:
    scores = torch.randn(1, 10)
    scores[0, :9] = -torch.inf
    stop = NonFiniteStop(1, 1, eos_id=0, device=torch.device("cpu"))

    assert torch.equal(stop(IDS[:1], scores.clone()), scores)
    assert not stop.overflowed.any()


def test_one_broken_beam_breaks_its_row_only() -> None:
    scores = torch.randn(4, 10)
    scores[1, 0] = torch.nan
    stop = NonFiniteStop(2, 2, eos_id=0, device=torch.device("cpu"))
    stop(torch.zeros(4, 1), scores)

    assert stop.overflowed.tolist() == [True, False]
