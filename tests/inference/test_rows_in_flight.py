"""Rows of any length, in any number at once, with any amount of memory: each is answered once, as if it were alone."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence as Seq
from typing import Any, cast

import pytest
from helpers.fake_backends import within
from helpers.fake_model_runner import TOKENIZATION, HashModelRunner, ListQueue, requests_of, resolved_of
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_kit.inference.backend import RunControl
from qwenvl_kit.inference.cache_memory import CacheMemory
from qwenvl_kit.inference.cache_size import MAX_WASTE
from qwenvl_kit.inference.encoder_cache import EncoderCache
from qwenvl_kit.inference.engine import generate
from qwenvl_kit.types import Request, Result

LARGE = 600  # tokens of its prompt; of the others about 50


class Machine(HashModelRunner):
    """A model runner and the memory for its cache, in tokens."""

    bytes_per_token = 1024

    def __init__(self, n_tokens: int = 10**6, **faults: Any) -> None:
        super().__init__(**faults)
        self.n_tokens = n_tokens
        self.n_most_held = self.n_most_decoded = 0

    def max_tokens(self, n_held: int, *, reserve: bool) -> int:
        return self.n_tokens // (1 + reserve)

    def resize_cache(self, n_slots: int, capacity: int) -> None:
        super().resize_cache(n_slots, capacity)
        self.n_most_held = max(self.n_most_held, n_slots * capacity)

    def decode(self, ids: Any, positions: Any, lengths: Any, *rest: Any) -> Any:
        self.n_most_decoded = max(self.n_most_decoded, len(ids))
        return super().decode(ids, positions, lengths, *rest)


def run(
    machine: Machine, requests: Seq[Request], *, seed: int = 0, stop_after: int | None = None, **options: Any
) -> list[Result]:
    def work() -> list[Result]:
        cancel = threading.Event()
        results = []
        encoder_cache = EncoderCache(machine, TOKENIZATION.processor.patchify)
        queue = ListQueue(list(requests), seed)
        resolved, memory = resolved_of(**options), cast(CacheMemory, machine)
        control = RunControl(cancel)
        for result in generate(machine, encoder_cache, TOKENIZATION, queue, resolved, control, memory):
            results.append(result)
            if len(results) == stop_after:
                cancel.set()
        if stop_after is not None:
            results += [Result(request.row, "cancelled") for request in queue.requests]
        return results

    return within(120, work)


@functools.cache
def alone(level: int, n_prompt: int, n_most: int) -> tuple[str | None, str | None]:
    (result,) = run(Machine(), requests_of([(level, n_prompt, n_most)]), batch_size=1)
    return result.text, result.finish_reason


ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 7, 30, LARGE]), st.sampled_from([1, 5, 12])),
    min_size=1,
    max_size=40,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    rows=ROWS,
    rows_in_flight=st.sampled_from([1, 3, 16, 40, "auto"]),
    batch_size=st.integers(1, 9),
    n_tokens=st.sampled_from([100, 700, 3000, 10**6]),
    sometimes=st.sampled_from([0.0, 0.0, 0.05]),
    stop_after=st.sampled_from([None, None, 1, 7]),
    seed=st.integers(0, 99),
)
def test_every_row_comes_back_once_with_the_answer_that_it_gets_alone_within_memory(
    rows: list[tuple[int, int, int]],
    rows_in_flight: int | str,
    batch_size: int,
    n_tokens: int,
    sometimes: float,
    stop_after: int | None,
    seed: int,
) -> None:
    requests = requests_of(rows)
    machine = Machine(n_tokens, seed=seed, sometimes=sometimes)
    results = run(
        machine, requests, seed=seed, stop_after=stop_after, batch_size=batch_size, rows_in_flight=rows_in_flight
    )

    assert sorted(result.row for result in results) == list(range(len(rows)))
    done = [result for result in results if result.status != "cancelled"]
    for result in done:
        assert (result.text, result.finish_reason) == alone(*rows[result.row])
    assert len(done) >= min(stop_after or len(rows), len(rows))
    largest = max(TOKENIZATION.processor.encode(request).max_len for request in requests)
    assert machine.n_most_held <= max(n_tokens, largest + 63), "a single row runs in any case"
    if isinstance(rows_in_flight, int):
        assert machine.n_most_decoded <= rows_in_flight


def test_a_large_row_is_answered_while_small_ones_keep_coming_and_costs_little_memory() -> None:
    n_rows, at = 300, 20
    rows = [(row % 7, row % 5, 12) for row in range(n_rows)]
    rows[at] = (1, 4000, 12)
    machine = Machine()
    results = run(machine, requests_of(rows), batch_size=8)

    place = [result.row for result in results].index(at)
    assert place < 150, "not after all others"
    assert machine.n_most_held <= MAX_WASTE * (4096 + 8 * 128)


def test_large_rows_run_together_and_are_not_one_after_the_other() -> None:
    rows = [(row % 7, LARGE if row % 10 == 0 else 2, 5) for row in range(200)]
    machine = Machine()

    run(machine, requests_of(rows), batch_size=4, rows_in_flight=16)

    assert sum(machine.sizes) / len(machine.sizes) > 8, "half of the seats are taken on average"


@pytest.mark.parametrize(("n_rows", "n_in_flight"), [(3, 3), (60, 16)])
def test_by_default_more_rows_generate_than_images_are_in_a_forward(n_rows: int, n_in_flight: int) -> None:
    machine = Machine()
    run(machine, requests_of([(row % 7, row % 5, 40) for row in range(n_rows)]))

    assert machine.n_most_decoded <= n_in_flight
    assert machine.n_most_decoded >= min(3, n_rows)


def test_where_little_memory_is_left_few_rows_run_and_all_are_answered() -> None:
    requests = requests_of([(row % 7, row % 5, 12) for row in range(30)])
    machine = Machine(n_tokens=2 * 3 * 64)  # half of it stays free

    results = run(machine, requests)

    assert {result.status for result in results} == {"ok"}
    assert machine.n_most_decoded == 3
    assert machine.n_most_held == 3 * 64


def test_first_tokens_are_emitted_and_cancel_is_looked_at_between_groups_of_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Prefilling(Machine):
        n_chunks = 0

        def prefill(self, chunks: Any) -> Any:
            self.n_chunks += len(chunks)
            return super().prefill(chunks)

    monkeypatch.setattr("qwenvl_kit.inference.packing._IMAGE_PATCHES", {"cpu": 100})  # an image has 16
    machine, cancel = Prefilling(), threading.Event()
    seen: list[int] = []

    def on_token(row: int, text: str) -> None:
        seen.append(machine.n_chunks)
        cancel.set()

    queue = ListQueue(requests_of([(level, 0, 9) for level in range(40)]))
    encoder_cache = EncoderCache(machine, TOKENIZATION.processor.patchify)
    resolved, control = resolved_of(batch_size=40), RunControl(cancel, on_token)
    results = list(generate(machine, encoder_cache, TOKENIZATION, queue, resolved, control, cast(CacheMemory, machine)))

    assert seen
    assert machine.n_chunks <= 8, "and not a prompt more after the first tokens"
    assert len(results) + len(queue.requests) == 40
