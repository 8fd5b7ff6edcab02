"""Scheduling policy, without an engine and without a model."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.fake_model_runner import EOS, TOKENIZATION, HashModelRunner, requests_of, resolved_of

from qwenvl_kit.inference.backend import RunControl
from qwenvl_kit.inference.cache_size import CacheSize
from qwenvl_kit.inference.kv_slots import SlotManager
from qwenvl_kit.inference.scheduler import Decode, Prefill, Scheduler
from qwenvl_kit.inference.sequence import Sequence
from qwenvl_kit.inference.waiting_queue import WaitingQueue


class Memory:
    """Memory for so many tokens, a kibibyte each."""

    bytes_per_token = 1024

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens

    def max_tokens(self, n_held: int, *, reserve: bool) -> int:
        return self.n_tokens // (1 + reserve)


class Policy:
    """A scheduler whose prompts are prefilled by giving them slots."""

    def __init__(self, rows: list[tuple[int, int, int]], *, memory: Memory | None = None, **options: Any) -> None:
        resolved = resolved_of(**options)
        self.notes: list[str] = []
        size = CacheSize(memory, reserve=resolved.rows_in_flight == "auto")  # type: ignore[arg-type]
        self.slots = SlotManager(HashModelRunner(), size)
        self.waiting = WaitingQueue(TOKENIZATION.processor.encode, resolved.batch_size)
        control = RunControl(note=self.notes.append)
        self.scheduler = Scheduler(self.waiting, self.slots, TOKENIZATION, resolved, control)
        self.waiting.put_back([TOKENIZATION.processor.encode(request) for request in requests_of(rows)])

    def prefill(self) -> list[Sequence]:
        batch = self.scheduler.schedule()
        assert isinstance(batch, Prefill)
        self.slots.allocate(batch.sequences, max_slots=self.scheduler.max_num_seqs)
        return batch.sequences

    def admit(self) -> list[int]:
        """Prefill as long as the scheduler says so; return how many sequences joined each time."""
        sizes = []
        while isinstance(batch := self.scheduler.schedule(), Prefill):
            self.slots.allocate(batch.sequences, max_slots=self.scheduler.max_num_seqs)
            list(self.scheduler.postprocess(batch.sequences, [5] * len(batch.sequences)))
            sizes.append(len(batch.sequences))
        return sizes

    def step(self, n_ending: int) -> None:
        """Decode a step in which the first sequences end."""
        batch = self.scheduler.schedule()
        assert isinstance(batch, Decode)
        tokens = [EOS] * n_ending + [6] * (len(batch.sequences) - n_ending)
        list(self.scheduler.postprocess(batch.sequences, tokens))


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


def test_prompts_run_in_groups_of_batch_size_until_all_seats_are_taken() -> None:
    policy = Policy([(level, 0, 8) for level in range(40)], batch_size=4, rows_in_flight=10)

    assert policy.admit() == [4, 4, 2]
    assert policy.scheduler.n_free == 0


def test_of_a_large_batch_eight_sequences_run_between_two_looks_at_cancel() -> None:
    policy = Policy([(level, 0, 8) for level in range(80)], batch_size=72)

    # 16 patches each: 64 images fit the pass of a CPU
    assert policy.admit() == [64, 8]
    policy = Policy([(level, 0, 8) for level in range(80)], batch_size=72)
    for one in policy.waiting.sequences:
        one.grid = one.grid * 16  # 4,096 patches
    assert policy.admit() == [8] * 9


def test_seats_are_collected_before_sequences_join_unless_too_few_wait() -> None:
    policy = Policy([(level, 0, 99) for level in range(27)], batch_size=8, rows_in_flight=24)
    assert policy.admit() == [8, 8, 8]

    policy.step(n_ending=1)
    assert policy.admit() == [], "of 24 seats, three are free before any is taken"
    policy.step(n_ending=1)
    assert policy.admit() == []
    policy.step(n_ending=1)
    assert policy.admit() == [3]

    few = Policy([(level, 0, 99) for level in range(25)], batch_size=8, rows_in_flight=24)
    few.admit()
    few.step(n_ending=1)
    assert few.admit() == [1], "the last one has nobody to wait for"


def test_a_large_row_lets_others_pass_but_only_so_many() -> None:
    rows = [(level, 0, 20) for level in range(8)]
    policy = Policy([*rows, (8, 0, 4000), *((level, 0, 20) for level in range(9, 99))], batch_size=8)
    policy.admit()
    for _ in range(20):
        if 8 in rows_of(policy.slots.sequences):
            break
        policy.step(n_ending=1)
        policy.admit()
    else:
        raise AssertionError("the large row starves")

    assert rows_of(policy.slots.sequences)[0] != 8 or len(policy.slots.sequences) <= 4
    assert len(policy.slots.sequences) <= 4, "it set the room of few others"
    slots, capacity = policy.slots.size.now
    assert slots * capacity <= 4 * 4096


@pytest.mark.parametrize(
    ("options", "n_tokens", "n_rows", "note"),
    [
        ({}, 10_000, 16, "16 rows in flight (1 MiB of keys and values)."),
        ({}, 1000, 7, "7 rows in flight (0 MiB of keys and values)."),
        ({}, 3, 1, "1 row in flight (0 MiB of keys and values)."),
        ({"batch_size": 5}, 10_000, 5, None),
        ({"batch_size": 20}, 10_000, 20, None),
        ({"batch_size": 20, "rows_in_flight": "auto"}, 10_000, 20, "20 rows in flight (1 MiB of keys and values)."),
        ({"rows_in_flight": 30}, 10_000, 30, None),
        (
            {"rows_in_flight": 30},
            1000,
            15,
            "Out of memory for 30 sequences; continuing with at most 15 (1 MiB of keys and values).",
        ),
    ],
)
def test_rows_in_flight_are_as_asked_or_as_memory_allows_and_on_record(
    options: dict[str, Any], n_tokens: int, n_rows: int, note: str | None
) -> None:
    policy = Policy([(level, 0, 8) for level in range(60)], memory=Memory(n_tokens), **options)

    assert sum(policy.admit()) == n_rows
    assert policy.notes == ([] if note is None else [note])


def test_where_free_memory_is_unknown_a_batch_runs_at_once() -> None:
    policy = Policy([(level, 0, 8) for level in range(60)])

    assert sum(policy.admit()) == 4
    assert policy.notes == ["Free memory is unknown on this system; at most batch_size=4 rows in flight."]


def test_after_memory_ran_out_the_limit_slowly_grows_again() -> None:
    policy = Policy([(level, 0, 8) for level in range(99)], batch_size=8)
    policy.admit()
    policy.scheduler.preempt()
    assert policy.scheduler.max_num_seqs == 4

    for _ in range(60):
        policy.admit()
        policy.step(n_ending=1)

    assert policy.scheduler.max_num_seqs == 8
