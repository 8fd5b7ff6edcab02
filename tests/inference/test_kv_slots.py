"""Which slots sequences get, and which prefixes are copied instead of prefilled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.fake_model_runner import IMAGE, TOKENIZATION, HashModelRunner, requests_of

from qwenvl_kit.inference.kv_slots import SlotManager
from qwenvl_kit.inference.sequence import Sequence


@pytest.mark.parametrize(
    ("device", "n_equal", "n_other", "is_shared"),
    [("cpu", 8, 100, True), ("cpu", 7, 100, False), ("cpu", 8, 160, False), ("cuda", 40, 100, False)],
)
def test_a_prefix_is_copied_where_that_costs_less_than_prefilling_it_again(
    device: str, n_equal: int, n_other: int, is_shared: bool
) -> None:
    model_runner = HashModelRunner()
    sequences = texts_of(n_equal, n_other)
    slots = SlotManager(model_runner)
    slots.allocate(sequences, max_slots=2)
    model_runner.device = torch.device("meta") if device != "cpu" else model_runner.device  # stands in for a GPU

    stages = slots.plan_prefill(sequences, [torch.zeros(0, 1)] * 2)

    cached = [[chunk.cached_len for chunk in stage.chunks] for stage in stages]
    assert cached == ([[0], [n_equal]] if is_shared else [[0, 0]])


def test_images_share_the_prefix_before_them_and_questions_share_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    # an image has four tokens here
    monkeypatch.setattr("qwenvl_kit.inference.kv_slots.MIN_SHARED_PREFIX", {"cpu": (3, 0)})
    sequences = sequences_of([(level, question, 8) for level in range(2) for question in range(3)])
    slots = SlotManager(HashModelRunner())
    slots.allocate(sequences, max_slots=6)

    stages = slots.plan_prefill(sequences, [torch.zeros(4, 1)] * 6)

    assert [[(chunk.slot, chunk.cached_len) for chunk in stage.chunks] for stage in stages] == [
        [(0, 0)],
        [(1, 45), (2, 45), (3, 40)],  # the first image's other questions, and the second image
        [(4, 45), (5, 45)],
    ]
    assert stages[1].copies == [(0, 1, 45), (0, 2, 45), (0, 3, 40)]


def test_the_cache_grows_in_steps_and_shrinks_only_when_it_is_empty() -> None:
    model_runner = HashModelRunner()
    slots = SlotManager(model_runner)
    slots.allocate(sequences_of([(0, 0, 300)]), max_slots=8)
    assert (len(model_runner.slots), model_runner.capacity) == (1, 384)

    slots.allocate(sequences_of([(1, 0, 8)]), max_slots=8)
    slots.allocate(sequences_of([(2, 0, 8)]), max_slots=3)
    assert (len(model_runner.slots), model_runner.capacity) == (3, 384), "twice as many, but no more than may run"

    assert len(slots.preempt_all()) == 3
    assert model_runner.capacity == 0
    slots.allocate(sequences_of([(3, 0, 8)]), max_slots=8)
    assert (len(model_runner.slots), model_runner.capacity) == (1, 64)


def test_finished_sequences_leave_gaps_that_compacting_closes() -> None:
    model_runner = HashModelRunner()
    slots = SlotManager(model_runner)
    first, second, third = sequences = sequences_of([(level, 0, 8) for level in range(3)])
    slots.allocate(sequences, max_slots=3)
    model_runner.slots[2] = ["third"] * third.n_tokens
    third.append_token(7, (), stop_repetition=False)
    first.append_token(None, (), stop_repetition=False)

    assert slots.release_finished() == [first]
    assert model_runner.slots[0] == [], "its numbers were not finite"
    assert slots.compact() == [third, second]
    assert model_runner.slots[0] == ["third"] * (third.n_tokens - 1)


def sequences_of(rows: list[tuple[int, int, int]]) -> list[Sequence]:
    return [TOKENIZATION.processor.encode(request) for request in requests_of(rows)]


def texts_of(n_equal: int, n_other: int) -> list[Sequence]:
    """Return two prompts without images that begin alike."""
    request = replace(requests_of([(0, 0, 8)])[0], images=())
    no_images = torch.zeros(0, 3, dtype=torch.long)
    prompts = [[*range(100, 100 + n_equal), *[word] * n_other] for word in (5, 6)]
    return [Sequence(request, ids, no_images, image_id=IMAGE, merge=2) for ids in prompts]
