"""The generation loop, on a model whose every token depends on all tokens before it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.fake_backends import within
from helpers.fake_model_runner import (
    TOKENIZATION,
    HashModelRunner,
    ListQueue,
    PlainProcessor,
    requests_of,
    resolved_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_kit.inference.backend import RequestQueue, RunControl
from qwenvl_kit.inference.encoder_cache import EncoderCache
from qwenvl_kit.inference.engine import generate
from qwenvl_kit.inference.processor import Tokenization
from qwenvl_kit.inference.sequence import Sequence
from qwenvl_kit.types import LoadedImage, Request, Result


def start(
    model_runner: HashModelRunner,
    queue: RequestQueue,
    *,
    tokenization: Tokenization = TOKENIZATION,
    control: RunControl | None = None,
    **options: Any,
) -> Iterator[Result]:
    encoder_cache = EncoderCache(model_runner, tokenization.processor.patchify)
    return generate(model_runner, encoder_cache, tokenization, queue, resolved_of(**options), control or RunControl())


def run(model_runner: HashModelRunner, requests: Seq[Request], *, seed: int = 0, **options: Any) -> list[Result]:
    return within(60, lambda: list(start(model_runner, ListQueue(list(requests), seed), **options)))


ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20), st.integers(1, 40)), min_size=1, max_size=30)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(rows=ROWS, batch_size=st.integers(1, 9), seed=st.integers(0, 99), sometimes=st.sampled_from([0.0, 0.05]))
def test_every_row_gets_the_answer_that_it_gets_alone_whoever_joins_leaves_or_runs_out_of_memory(
    rows: list[tuple[int, int, int]], batch_size: int, seed: int, sometimes: float
) -> None:
    requests = [  # some have labels to score instead
        replace(one, labels=("3 4 5", "3 4", f"{6 + one.row} 7")) if row[1] % 3 == 2 else one
        for one, row in zip(requests_of(rows), rows, strict=True)
    ]
    sampled = {"do_sample": True, "repetition_penalty": 1.3} if seed % 2 else {}
    alone = [run(HashModelRunner(), [request], batch_size=1, **sampled)[0] for request in requests]

    scarce = HashModelRunner(seed=seed, sometimes=sometimes)
    together = run(scarce, requests, batch_size=batch_size, seed=seed, **sampled)

    by_row = sorted(together, key=lambda result: result.row)
    assert [result.row for result in by_row] == list(range(len(rows)))
    for one, other, request in zip(by_row, alone, requests, strict=True):
        assert (one.text, one.finish_reason, one.new_tokens) == (other.text, other.finish_reason, other.new_tokens)
        assert (one.label_logprobs, one.label_tokens) == (other.label_logprobs, other.label_tokens)
        assert (one.label_logprobs is not None) == bool(request.labels)
        assert one.new_tokens is not None
        assert one.new_tokens <= request.max_new_tokens


def test_short_answers_leave_and_waiting_rows_take_their_place() -> None:
    requests = requests_of([(level, level, 30 if level == 0 else 3) for level in range(20)])
    model_runner = HashModelRunner()

    results = run(model_runner, requests, batch_size=4)

    assert max(model_runner.sizes) <= 4
    assert results[-1].row == 0 or results[0].row != 0
    n_new = sum(result.new_tokens or 0 for result in results)
    assert sum(model_runner.sizes) <= n_new, "no step is spent on a finished row"


def test_each_image_is_encoded_once_and_its_prefix_prefilled_once() -> None:
    requests = requests_of([(level, question, 8) for level in range(4) for question in range(4)])
    model_runner = HashModelRunner()

    run(model_runner, requests, batch_size=4, seed=3)

    n_prompts = sum(44 + 1 + question for _ in range(4) for question in range(4))
    assert model_runner.n_encoded == 4
    assert model_runner.n_prefilled < 0.6 * n_prompts


def test_the_prefix_before_different_images_is_prefilled_once() -> None:
    requests = requests_of([(level, 0, 8) for level in range(8)])
    model_runner = HashModelRunner()

    run(model_runner, requests, batch_size=8)

    assert model_runner.n_prefilled < 0.6 * 8 * 45


@settings(max_examples=30, deadline=None)
@given(
    shown=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=2, max_size=8), seed=st.integers(0, 9)
)
def test_of_several_images_those_that_rows_begin_with_are_shared_whole(shown: list[list[int]], seed: int) -> None:
    one_each = requests_of([(level, 0, 6) for level in range(3)])
    requests = [
        replace(one_each[0], row=row, images=tuple(one_each[level].images[0] for level in levels))
        for row, levels in enumerate(shown)
    ]
    alone = [run(HashModelRunner(), [request], batch_size=1)[0].text for request in requests]

    together = sorted(run(HashModelRunner(), requests, batch_size=4, seed=seed), key=lambda result: result.row)

    assert [result.text for result in together] == alone


def test_the_loop_waits_for_requests_only_when_it_has_nothing_to_do() -> None:
    n_live = 0

    class Watched(HashModelRunner):
        def decode(self, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
            nonlocal n_live
            n_live = len(ids)
            return super().decode(ids, *rest)

    class Slow(ListQueue):
        def get(self, n: int, *, block: bool) -> list[Request] | None:
            assert not (block and n_live)
            return super().get(n, block=block)

    queue = Slow(requests_of([(0, 0, 20), (1, 1, 20), (2, 2, 20)]), 5)
    for result in start(Watched(), queue):
        n_live -= 1
        assert result.status == "ok"
    assert queue.n_blocked >= 1


def test_where_two_rows_fit_two_run_at_once_and_a_row_that_never_fits_is_an_error() -> None:
    notes: list[str] = []
    requests = requests_of([(level, 0, 10) for level in range(8)])

    results = run(HashModelRunner(n_rows_that_fit=2), requests, batch_size=8, control=RunControl(note=notes.append))
    hopeless = run(HashModelRunner(n_rows_that_fit=0), requests[:3], batch_size=2)

    assert [result.status for result in results] == ["ok"] * 8
    assert notes[0].startswith("Out of memory with ")
    assert [result.status for result in hopeless] == ["error"] * 3
    assert all("max_pixels" in (result.error or "") for result in hopeless)


def test_other_exceptions_end_the_run() -> None:
    class Broken(HashModelRunner):
        def decode(self, *_: Any) -> torch.Tensor:
            raise RuntimeError("CUDA error: an illegal memory access")

    with pytest.raises(RuntimeError, match="illegal"):
        run(Broken(), requests_of([(0, 0, 30), (1, 0, 30), (2, 0, 30)]))


def test_rows_of_numbers_that_are_not_finite_are_errors_and_others_go_on() -> None:
    class Overflowing(HashModelRunner):
        poisoned: set[int] = set()  # noqa: RUF012  # slots with numbers that are not finite

        def decode(self, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
            assert not self.poisoned, "a row that overflowed is gone, and what it left in its slot"
            logits = super().decode(ids, *rest)
            if len(ids) > 1:
                logits[0, 5] = torch.nan
                self.poisoned.add(0)
            return logits

        def zero_slot(self, slot: int) -> None:
            super().zero_slot(slot)
            self.poisoned.remove(slot)

    results = run(Overflowing(), requests_of([(level, 0, 30) for level in range(5)]), batch_size=3, dtype="float16")

    statuses = [result.status for result in results]
    assert {"ok", "error"} == set(statuses)
    assert all("float16" in (result.error or "") for result in results if result.status == "error")


def test_cancelling_keeps_what_is_finished_and_returns_every_other_row_that_was_taken() -> None:
    cancel = threading.Event()
    requests = requests_of([(level, 0, 3 if level < 2 else 40) for level in range(6)])
    queue = ListQueue(list(requests), 1)
    model_runner = HashModelRunner()
    results = []
    for result in start(model_runner, queue, control=RunControl(cancel), batch_size=3):
        results.append(result)
        cancel.set()

    assert results[0].status == "ok"
    assert {result.status for result in results[1:]} <= {"cancelled", "ok"}
    assert len(results) + len(queue.requests) == 6
    assert model_runner.capacity == 0, "the cache is freed"


@pytest.mark.parametrize(("text", "pieces"), [("图a片".encode(), ["图", "a", "片"]), ("图a片".encode()[:-1], None)])
def test_characters_of_several_tokens_are_emitted_whole_unless_the_end_cuts_them(
    text: bytes, pieces: list[str] | None
) -> None:
    def decode(ids: list[int]) -> str:
        return bytes(text[: len(ids)]).decode(errors="replace")

    emitted: list[str] = []
    request = next(one for one in requests_of([(level, 0, len(text)) for level in range(99)]) if _is_long(one))
    control = RunControl(on_token=lambda _, piece: emitted.append(piece))
    tokenization = replace(TOKENIZATION, decode=decode)
    (result,) = start(HashModelRunner(), ListQueue([request]), tokenization=tokenization, control=control)

    assert "".join(emitted) == result.text
    assert emitted == (pieces or emitted)
    assert result.text is not None
    assert result.text.endswith("\ufffd") == (pieces is None)


class FaultyProcessor(PlainProcessor):
    """Refuses one row's prompt, and cannot cut one row's image."""

    def encode(self, request: Request) -> Sequence:
        if request.row == 2:
            raise KeyError("a template of a stranger")
        return super().encode(request)

    def patchify(self, image: LoadedImage) -> torch.Tensor:
        if image.digest == "5":
            raise ZeroDivisionError("division by zero")
        return super().patchify(image)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("listens", [False, True])
def test_what_a_library_raises_over_one_row_is_that_rows_error(batch_size: int, listens: bool) -> None:
    bad = {2: "KeyError", 5: "ZeroDivisionError", 12: "ZeroDivisionError", 8: "OverflowError"}
    rows = [(level, level % 3, 9) for level in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 5, 13)]
    wanted = {one.row: one.text for one in run(HashModelRunner(), requests_of(rows))}
    text_of_eight = wanted[8]

    def decode(ids: list[int]) -> str:
        text = " ".join(map(str, ids))
        if text == text_of_eight:
            raise OverflowError("a token out of range")
        return text

    tokenization = replace(TOKENIZATION, processor=FaultyProcessor(), decode=decode)  # type: ignore[arg-type]
    control = RunControl(on_token=(lambda row, piece: None) if listens else None)
    results = run(
        HashModelRunner(), requests_of(rows), tokenization=tokenization, control=control, batch_size=batch_size
    )

    found = {result.row: result for result in results}
    assert len(found) == len(rows)
    for row, result in found.items():
        if row in bad:
            assert (result.status, result.stage) == ("error", "generate")
            assert bad[row] in str(result.error)
        else:
            assert (result.status, result.text) == ("ok", wanted[row])


def test_memory_that_runs_out_while_an_image_is_cut_is_no_fault_of_the_image() -> None:
    class Scarce(PlainProcessor):
        n_left = 1

        def patchify(self, image: LoadedImage) -> torch.Tensor:
            self.n_left -= 1
            if self.n_left == 0:
                raise MemoryError
            return super().patchify(image)

    tokenization = replace(TOKENIZATION, processor=Scarce())  # type: ignore[arg-type]
    requests = requests_of([(level, 0, 5) for level in range(4)])
    results = run(HashModelRunner(), requests, seed=1, tokenization=tokenization, batch_size=4)

    assert [result.status for result in results].count("ok") >= 3, "all but a row that was alone when memory ran out"


def _is_long(request: Request) -> bool:
    return run(HashModelRunner(), [request])[0].finish_reason == "length"
