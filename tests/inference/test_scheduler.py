"""Scheduling policy, without an engine and without a model."""

from __future__ import annotations

from typing import Any

from helpers.fake_model_runner import EOS, TOKENIZATION, HashModelRunner, requests_of, resolved_of

from qwenvl_kit.inference.backend import RunControl
from qwenvl_kit.inference.kv_slots import SlotManager
from qwenvl_kit.inference.scheduler import Decode, Prefill, Scheduler
from qwenvl_kit.inference.sequence import Sequence
from qwenvl_kit.inference.waiting_queue import WaitingQueue


class Policy:
    """A scheduler whose prompts are prefilled by giving them slots."""

    def __init__(self, rows: list[tuple[int, int, int]], **options: Any) -> None:
        resolved = resolved_of(**options)
        self.notes: list[str] = []
        self.slots = SlotManager(HashModelRunner())
        self.waiting = WaitingQueue(TOKENIZATION.processor.encode, resolved.batch_size)
        control = RunControl(note=self.notes.append)
        self.scheduler = Scheduler(self.waiting, self.slots, TOKENIZATION, resolved, control)
        self.waiting.put_back([TOKENIZATION.processor.encode(request) for request in requests_of(rows)])

    def prefill(self) -> list[Sequence]:
        batch = self.scheduler.schedule()
        assert isinstance(batch, Prefill)
        self.slots.allocate(batch.sequences, max_slots=self.scheduler.max_num_seqs)
        return batch.sequences


def rows_of(sequences: list[Sequence]) -> list[int]:
    return [sequence.request.row for sequence in sequences]


def test_prompts_run_first_while_there_is_room_then_all_decode() -> None:
    policy = Policy([(level, 0, 8) for level in range(3)], batch_size=2)

    first = policy.prefill()
    assert rows_of(first) == [0, 1]
    assert list(policy.scheduler.postprocess(first, [5, EOS])) != [], "the second answer is empty, and finished"
    second = policy.prefill()
    assert rows_of(second) == [2]
    list(policy.scheduler.postprocess(second, [6]))
    step = policy.scheduler.schedule()

    assert isinstance(step, Decode)
    assert rows_of(step.sequences) == [0, 2]


def test_rows_with_the_same_images_run_together_then_those_of_like_length() -> None:
    policy = Policy([(1, 0, 8), (2, 20, 8), (3, 1, 8), (1, 9, 8)], batch_size=3)

    assert rows_of(policy.prefill()) == [0, 2, 3]
    assert policy.scheduler.n_free == 0


def test_results_say_why_their_answers_ended() -> None:
    policy = Policy([(1, 0, 1), (1, 1, 2), (1, 2, 8)], dtype="float16")
    sequences = policy.prefill()

    first = list(policy.scheduler.postprocess(sequences, [5, 6, 7]))
    step = policy.scheduler.schedule()
    assert isinstance(step, Decode)
    then = {result.row: result for result in policy.scheduler.postprocess(step.sequences, [EOS, None])}

    assert [(result.row, result.text, result.finish_reason) for result in first] == [(0, "5", "length")]
    ended, overflowed = rows_of(step.sequences)
    assert then[ended].finish_reason == "stop"
    assert "float16" in (then[overflowed].error or "")
    assert policy.scheduler.schedule() is None


def test_preempted_rows_wait_before_all_others_and_resume_with_their_output_half_as_many_at_once() -> None:
    policy = Policy([(level, 0, 8) for level in range(6)], batch_size=4)
    sequences = policy.prefill()
    list(policy.scheduler.postprocess(sequences, [5, 6, 7, 8]))

    assert policy.scheduler.preempt() == []

    assert policy.notes == ["Out of memory with 4 sequences; continuing with at most 2."]
    resumed = policy.prefill()
    assert rows_of(resumed) == [0, 1]
    assert [sequence.output_ids for sequence in resumed] == [[5], [6]]
    assert isinstance(policy.scheduler.schedule(), Decode), "there is no room for a third"


def test_a_row_that_does_not_fit_alone_is_an_error_and_the_limit_is_lifted() -> None:
    policy = Policy([(level, 0, 8) for level in range(3)], batch_size=2)
    policy.prefill()
    policy.scheduler.preempt()
    (alone,) = policy.prefill()

    (result,) = policy.scheduler.preempt()

    assert (result.row, result.status) == (alone.request.row, "error")
    assert "max_pixels" in (result.error or "")
    assert policy.scheduler.max_num_seqs == 2


def test_cancelled_rows_are_those_that_run_and_those_that_wait() -> None:
    policy = Policy([(level, 0, 8) for level in range(3)], batch_size=2)
    policy.prefill()

    assert [(result.row, result.status) for result in policy.scheduler.cancel()] == [
        (row, "cancelled") for row in range(3)
    ]
