"""The decode loop on a model whose every token depends on all tokens before it, in their slot and position."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fake_backends import within
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_kit import Config, Control
from qwenvl_kit.checkpoints.capabilities import Device
from qwenvl_kit.checkpoints.resolve import CheckpointDefaults, ResolvedConfig, resolve
from qwenvl_kit.inference.encoder_cache import EncoderCache
from qwenvl_kit.inference.kv_slots import SlotManager
from qwenvl_kit.inference.model_runner import PrefillChunk
from qwenvl_kit.inference.processor import Encoded
from qwenvl_kit.inference.scheduler import Tokenization, generate
from qwenvl_kit.inference.sequence import Sequence
from qwenvl_kit.types import LoadedImage, PatchGeometry, Request, Result

VOCABULARY, EOS, IMAGE = 50, 1, 2


class HashModelRunner:
    """A model_runner whose next token is a hash of all that its slot holds; memory runs out where it is told so."""

    device = torch.device("cpu")

    def __init__(self, *, n_rows_that_fit: int = 99, seed: int = 0, sometimes: float = 0.0) -> None:
        self.slots: list[list[Any]] = []
        self.capacity = 0
        self.n_looked = self.n_read = 0
        self.sizes: list[int] = []
        self._n_fit, self._random, self._sometimes = n_rows_that_fit, random.Random(seed), sometimes

    def encode_images(self, pixel_values: torch.Tensor, grid: torch.Tensor) -> list[torch.Tensor]:
        self.n_looked += len(grid)
        return [one[:4] for one in pixel_values.split(grid.prod(dim=1).tolist())]  # 16 patches, 4 visual tokens

    def resize_cache(self, n_slots: int, capacity: int) -> None:
        self.capacity = capacity
        self.slots = [*self.slots[:n_slots], *[[] for _ in range(n_slots - len(self.slots))]]
        self.slots = [slot[:capacity] for slot in self.slots]

    def prefill(self, chunks: Sequence[PrefillChunk]) -> torch.Tensor:
        self._use_memory(len(self.slots), len(chunks))
        logits = []
        for chunk in chunks:
            self.n_read += len(chunk.ids)
            seen = iter(() if chunk.image_features is None else chunk.image_features[:, 0].tolist())
            tokens = [next(seen, token) if token == IMAGE else token for token in chunk.ids.tolist()]
            assert next(seen, None) is None
            held = self.slots[chunk.slot][: chunk.cached_len]
            assert len(held) == chunk.cached_len
            self.slots[chunk.slot] = [*held, *zip(tokens, map(tuple, chunk.positions.T.tolist()), strict=True)]
            assert len(self.slots[chunk.slot]) <= self.capacity
            logits.append(_logits(self.slots[chunk.slot]))
        return torch.stack(logits)

    def decode(self, ids: torch.Tensor, positions: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(ids))
        self._use_memory(len(ids))
        rows = enumerate(zip(ids.tolist(), positions.tolist(), lengths.tolist(), strict=True))
        for slot, (token, position, length) in rows:
            assert length < self.capacity
            self.slots[slot] = [*self.slots[slot][:length], (token, (position,) * 3)]
            assert len(self.slots[slot]) == length + 1
        return torch.stack([_logits(self.slots[slot]) for slot in range(len(ids))])

    def copy_slot(self, source: int, target: int, length: int) -> None:
        self.slots[target] = list(self.slots[source][:length])

    def zero_slot(self, slot: int) -> None:
        self.slots[slot] = []

    def close(self) -> None:
        self.slots = []

    def _use_memory(self, n_rows: int, n_read: int = 2) -> None:
        # A row that is read by itself has nothing left that could be given up: it would rightly be an error.
        is_unlucky = n_rows > 1 and n_read > 1 and self._random.random() < self._sometimes
        if n_rows > self._n_fit or is_unlucky:
            raise torch.OutOfMemoryError("made up")


def _logits(held: Sequence[Any]) -> torch.Tensor:
    draw = random.Random(str([(round(float(token), 3), position) for token, position in held]))
    logits = torch.full((VOCABULARY,), -1.0)
    logits[EOS if draw.random() < 0.05 else draw.randrange(3, VOCABULARY)] = 1.0
    return logits


class PlainEncoder:
    """PrefillWrite of numbers: 40 tokens, the picture's four, then the prompt's own."""

    def encode(self, request: Request) -> Encoded:
        ids = [*range(3, 43), *[IMAGE] * 4 * len(request.images), *map(int, request.prompt.split())]
        return Encoded(request, ids, torch.tensor([[1, 4, 4]] * len(request.images)), _cut)


def _cut(picture: LoadedImage) -> torch.Tensor:
    return torch.full((16, 1), float(picture.pixels[0, 0, 0]))


TOKENIZATION = Tokenization(PlainEncoder(), lambda ids: " ".join(map(str, ids)), (EOS,), IMAGE, 2)  # type: ignore[arg-type]


@dataclass
class ListQueue:
    """Gives requests, and now and then none."""

    requests: list[Request]
    seed: int = 0
    n_blocked: int = 0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def get(self, n: int, *, block: bool) -> list[Request] | None:
        assert n >= 1
        self.n_blocked += block
        if not self.requests:
            return None
        if not block and self._random.random() < 0.4:
            return []
        some = self._random.randint(1, n)
        taken, self.requests = self.requests[:some], self.requests[some:]
        return taken


def requests_of(rows: Sequence[tuple[int, int, int]]) -> list[Request]:
    """Of (gray level, question, longest answer) each."""
    return [
        Request(
            row,
            (LoadedImage(np.full((56, 56, 3), level, np.uint8), str(level), (56, 56)),),
            " ".join(map(str, range(10, 11 + question))),
            None,
            row * 7,
            n_most,
        )
        for row, (level, question, n_most) in enumerate(rows)
    ]


def effective_of(**options: Any) -> ResolvedConfig:
    return resolve(Config(**options), Device("cpu"), CheckpointDefaults("made up", "", PatchGeometry()))


def run(
    model_runner: HashModelRunner,
    requests: Sequence[Request],
    *,
    control: Control | None = None,
    seed: int = 0,
    **options: Any,
) -> list[Result]:
    queue = ListQueue(list(requests), seed)
    loop = generate(
        model_runner, EncoderCache(model_runner), TOKENIZATION, queue, effective_of(**options), control or Control()
    )
    return within(60, lambda: list(loop))


ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20), st.integers(1, 40)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, batch_size=st.integers(1, 9), seed=st.integers(0, 99), sometimes=st.sampled_from([0.0, 0.05]))
def test_every_row_gets_the_answer_that_it_gets_alone_whoever_joins_leaves_or_runs_out_of_memory(
    rows: list[tuple[int, int, int]], batch_size: int, seed: int, sometimes: float
) -> None:
    requests = requests_of(rows)
    sampled = {"do_sample": True, "repetition_penalty": 1.3} if seed % 2 else {}
    alone = [run(HashModelRunner(), [request], batch_size=1, **sampled)[0] for request in requests]

    together = run(
        HashModelRunner(seed=seed, sometimes=sometimes), requests, batch_size=batch_size, seed=seed, **sampled
    )

    by_row = sorted(together, key=lambda result: result.row)
    assert [result.row for result in by_row] == list(range(len(rows)))
    for one, other, request in zip(by_row, alone, requests, strict=True):
        assert (one.text, one.finish_reason, one.new_tokens) == (other.text, other.finish_reason, other.new_tokens)
        assert one.new_tokens is not None
        assert one.new_tokens <= request.max_new_tokens


def test_short_answers_leave_and_waiting_rows_take_their_place() -> None:
    requests = requests_of([(level, level, 30 if level == 0 else 3) for level in range(20)])
    model_runner = HashModelRunner()

    results = run(model_runner, requests, batch_size=4)

    assert max(model_runner.sizes) <= 4
    assert results[-1].row == 0 or results[0].row != 0
    assert sum(model_runner.sizes) <= sum(result.new_tokens or 0 for result in results), (
        "no step is spent on a done row"
    )


def test_each_distinct_picture_is_looked_at_once_and_its_beginning_read_once() -> None:
    requests = requests_of([(level, question, 8) for level in range(4) for question in range(4)])
    model_runner = HashModelRunner()

    run(model_runner, requests, batch_size=4, seed=3)

    n_prompts = sum(44 + 1 + question for _ in range(4) for question in range(4))
    assert model_runner.n_looked == 4
    assert model_runner.n_read < 0.6 * n_prompts


def test_the_beginning_before_different_pictures_is_read_once() -> None:
    requests = requests_of([(level, 0, 8) for level in range(8)])
    model_runner = HashModelRunner()

    run(model_runner, requests, batch_size=8)

    assert model_runner.n_read < 0.6 * 8 * 45


@pytest.mark.parametrize(
    ("device", "n_alike", "n_other", "is_shared"),
    [("cpu", 8, 100, True), ("cpu", 7, 100, False), ("cpu", 8, 160, False), ("cuda", 40, 100, False)],
)
def test_a_beginning_is_shared_where_that_costs_less_than_reading_it_again(
    device: str, n_alike: int, n_other: int, is_shared: bool
) -> None:
    model_runner = HashModelRunner()
    rows = [
        Sequence(encoded, image_id=IMAGE, merge=2, device=model_runner.device) for encoded in texts_of(n_alike, n_other)
    ]
    slots = SlotManager(model_runner)
    slots.allocate(rows, n_most=2)
    model_runner.device = torch.device("meta") if device != "cpu" else model_runner.device  # stands in for a GPU

    stages = slots.plan_prefill(rows, [torch.zeros(0, 1)] * 2)

    assert [[chunk.cached_len for chunk in stage] for stage in stages] == ([[0], [n_alike]] if is_shared else [[0, 0]])


def test_pictures_share_the_beginning_before_them_and_questions_share_the_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "qwenvl_kit.inference.kv_slots.MIN_SHARED_PREFIX", {"cpu": (3, 0)}
    )  # a picture has four tokens here
    requests = requests_of([(level, question, 8) for level in range(2) for question in range(3)])
    rows = [
        Sequence(TOKENIZATION.encoder.encode(one), image_id=IMAGE, merge=2, device=torch.device("cpu"))
        for one in requests
    ]
    slots = SlotManager(HashModelRunner())
    slots.allocate(rows, n_most=6)

    stages = slots.plan_prefill(rows, [torch.zeros(4, 1)] * 6)

    assert [[(chunk.slot, chunk.cached_len) for chunk in stage] for stage in stages] == [
        [(0, 0)],
        [(1, 45), (2, 45), (3, 40)],  # the first picture's other questions, and the second picture
        [(4, 45), (5, 45)],
    ]


def texts_of(n_alike: int, n_other: int) -> list[Encoded]:
    """Two prompts without pictures that begin alike."""
    request = replace(requests_of([(0, 0, 8)])[0], images=())
    return [
        Encoded(request, [*range(100, 100 + n_alike), *[word] * n_other], torch.zeros(0, 3, dtype=torch.long), _cut)
        for word in (5, 6)
    ]


@settings(max_examples=30, deadline=None)
@given(
    shown=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=2, max_size=8), seed=st.integers(0, 9)
)
def test_of_several_pictures_those_that_rows_begin_with_are_shared_whole(shown: list[list[int]], seed: int) -> None:
    one_each = requests_of([(level, 0, 6) for level in range(3)])
    requests = [
        replace(one_each[0], row=row, images=tuple(one_each[level].images[0] for level in levels))
        for row, levels in enumerate(shown)
    ]
    alone = [run(HashModelRunner(), [request], batch_size=1)[0].text for request in requests]

    together = sorted(run(HashModelRunner(), requests, batch_size=4, seed=seed), key=lambda result: result.row)

    assert [result.text for result in together] == alone


@pytest.mark.parametrize(("max_bytes", "max_pictures"), [(2 * 16, 99), (9 * 16, 2)])  # 16 bytes: four tokens
def test_pictures_beyond_the_memory_of_the_eyes_are_looked_at_again(
    max_bytes: int, max_pictures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenvl_kit.inference.encoder_cache.MAX_IMAGES", max_pictures)
    model_runner = HashModelRunner()
    encoder_cache = EncoderCache(model_runner, max_bytes=max_bytes)
    rows = [
        TOKENIZATION.encoder.encode(request) for request in requests_of([(level, 0, 1) for level in (1, 2, 3, 1, 3)])
    ]

    seen = [encoder_cache.encode([row])[0] for row in rows]

    assert [int(tokens[0, 0]) for tokens in seen] == [1, 2, 3, 1, 3]
    assert model_runner.n_looked == 4


def test_the_loop_waits_for_pictures_only_when_it_has_nothing_to_do() -> None:
    class Slow(ListQueue):
        def get(self, n: int, *, block: bool) -> list[Request] | None:
            assert not (block and model_runner.live)
            return super().get(n, block=block)

    class Watched(HashModelRunner):
        live = 0

    model_runner = Watched()
    queue = Slow(requests_of([(0, 0, 20), (1, 1, 20), (2, 2, 20)]), 5)
    for result in generate(model_runner, EncoderCache(model_runner), TOKENIZATION, queue, effective_of(), Control()):
        assert result.status == "ok"
    assert queue.n_blocked >= 1


def test_memory_that_fits_two_rows_is_asked_for_two_and_a_row_that_never_fits_is_an_error() -> None:
    notes: list[str] = []
    requests = requests_of([(level, 0, 10) for level in range(8)])

    results = run(HashModelRunner(n_rows_that_fit=2), requests, batch_size=8, control=Control(note=notes.append))
    hopeless = run(HashModelRunner(n_rows_that_fit=0), requests[:3], batch_size=2)

    assert [result.status for result in results] == ["ok"] * 8
    assert notes[0].startswith("memory ran out at ")
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

        def decode(self, ids: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
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


def test_cancelling_keeps_what_is_done_and_gives_back_every_other_row_it_took() -> None:
    cancel = threading.Event()
    requests = requests_of([(level, 0, 3 if level < 2 else 40) for level in range(6)])
    queue = ListQueue(list(requests), 1)
    model_runner = HashModelRunner()
    results = []
    for result in generate(
        model_runner, EncoderCache(model_runner), TOKENIZATION, queue, effective_of(batch_size=3), Control(cancel)
    ):
        results.append(result)
        cancel.set()

    assert results[0].status == "ok"
    assert {result.status for result in results[1:]} <= {"cancelled", "ok"}
    assert len(results) + len(queue.requests) == 6
    assert model_runner.capacity == 0, "the cache is freed"


def test_characters_of_several_tokens_are_told_whole() -> None:
    text = "图a片".encode()

    def decode(ids: Sequence[int]) -> str:
        return bytes(text[: len(ids)]).decode(errors="replace")

    told: list[str] = []
    tokenization = Tokenization(PlainEncoder(), decode, (EOS,), IMAGE, 2)  # type: ignore[arg-type]
    model_runner = HashModelRunner()
    request = next(one for one in requests_of([(level, 0, 7) for level in range(99)]) if _is_long(one))
    list(
        generate(
            model_runner,
            EncoderCache(model_runner),
            tokenization,
            ListQueue([request]),
            effective_of(),
            Control(on_token=lambda _, piece: told.append(piece)),
        )
    )

    assert told == ["图", "a", "片"]


def test_a_character_that_the_end_cuts_is_told_as_it_stands_in_the_text() -> None:
    text = "图a片".encode()[:-1]

    def decode(ids: Sequence[int]) -> str:
        return bytes(text[: len(ids)]).decode(errors="replace")

    told: list[str] = []
    tokenization = replace(TOKENIZATION, decode=decode)
    request = next(one for one in requests_of([(level, 0, len(text)) for level in range(99)]) if _is_long(one))
    control = Control(on_token=lambda _, piece: told.append(piece))
    model_runner = HashModelRunner()
    (result,) = generate(
        model_runner, EncoderCache(model_runner), tokenization, ListQueue([request]), effective_of(), control
    )

    assert result.text is not None
    assert result.text.endswith("\ufffd")
    assert "".join(told) == result.text


class FaultyEncoder(PlainEncoder):
    """Refuses one row's prompt, and cannot cut one row's picture."""

    def encode(self, request: Request) -> Encoded:
        if request.row == 2:
            raise KeyError("a template of a stranger")
        return replace(super().encode(request), patchify=_cut_some)


def _cut_some(picture: LoadedImage) -> torch.Tensor:
    if picture.digest == "5":
        raise ZeroDivisionError("division by zero")
    return _cut(picture)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("listens", [False, True])
def test_what_a_library_raises_over_one_row_is_that_rows_error(batch_size: int, listens: bool) -> None:
    bad = {2: "KeyError", 5: "ZeroDivisionError", 12: "ZeroDivisionError", 8: "OverflowError"}
    rows = [(level, level % 3, 9) for level in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 5, 13)]
    wanted = {one.row: one.text for one in run(HashModelRunner(), requests_of(rows))}
    said_by_eight = wanted[8]

    def decode(ids: Sequence[int]) -> str:
        text = " ".join(map(str, ids))
        if text == said_by_eight:
            raise OverflowError("a token out of range")
        return text

    tokenization = replace(TOKENIZATION, encoder=FaultyEncoder(), decode=decode)  # type: ignore[arg-type]
    model_runner = HashModelRunner()
    control = Control(on_token=(lambda row, piece: None) if listens else None)
    resolved = effective_of(batch_size=batch_size)
    found = {
        result.row: result
        for result in generate(
            model_runner, EncoderCache(model_runner), tokenization, ListQueue(requests_of(rows)), resolved, control
        )
    }

    assert len(found) == len(rows)
    for row, result in found.items():
        if row in bad:
            assert (result.status, result.stage) == ("error", "generate")
            assert bad[row] in str(result.error)
        else:
            assert (result.status, result.text) == ("ok", wanted[row])


def test_memory_that_runs_out_while_a_picture_is_cut_is_no_fault_of_the_picture() -> None:
    n_left = 1

    def cut(picture: LoadedImage) -> torch.Tensor:
        nonlocal n_left
        n_left -= 1
        if n_left == 0:
            raise MemoryError
        return _cut(picture)

    class InputProcessor(PlainEncoder):
        def encode(self, request: Request) -> Encoded:
            return replace(super().encode(request), patchify=cut)

    model_runner = HashModelRunner()
    tokenization = replace(TOKENIZATION, encoder=InputProcessor())  # type: ignore[arg-type]
    queue = ListQueue(requests_of([(level, 0, 5) for level in range(4)]), 1)
    results = list(
        generate(model_runner, EncoderCache(model_runner), tokenization, queue, effective_of(batch_size=4), Control())
    )

    assert [result.status for result in results].count("ok") >= 3, "all but a row that was alone when memory ran out"


def _is_long(request: Request) -> bool:
    return run(HashModelRunner(), [request])[0].finish_reason == "length"
