"""Decode steps are recorded once for each kind, anew for new memory, and a failed recording costs speed alone.

A GPU is pretended here: its graphs are closures that run again on replay.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.pretended_graphs import replay_on_cpu
from PIL import Image
from torch import Tensor

import qwenvl_kit
from qwenvl_kit.errors import QwenVLWarning
from qwenvl_kit.torch_backend.cuda_graphs import CudaGraphRunner, RecordedSteps

LAST: list[Callable[[], object]] = []  # does again what a pretended GPU ran last


class Gpu:
    """Events on a pretended GPU, in order, and the error of its next recordings."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.error: Exception | None = None


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    one = Gpu()

    class Graph:
        def capture_begin(self, *, pool: Any, capture_error_mode: str) -> None:
            one.events.append(f"record {capture_error_mode}")

        def capture_end(self) -> None:
            one.events.append("recorded")
            if one.error is not None:
                raise one.error
            self.replay = LAST[0]

    class Stream:
        def wait_stream(self, _: Any) -> None:
            one.events.append("wait")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    return one


def test_a_graph_is_warmed_up_aside_and_replayed_for_other_values(gpu: Gpu) -> None:
    def product(a: Tensor, b: Tensor) -> Tensor:
        gpu.events.append("run")
        output = a * b
        LAST[:] = [lambda: torch.mul(a, b, out=output)]  # a replay writes a new result where the recorded one was
        return output

    first = [torch.tensor([1, 2]), torch.tensor([3, 4])]
    runner = CudaGraphRunner(product, first)

    assert gpu.events == ["wait", "run", "run", "run", "record thread_local", "run", "recorded", "wait"]
    one = runner(torch.tensor([5, 6]), torch.tensor([7, 8]))
    two = runner(torch.tensor([1, 1]), torch.tensor([1, 1]))

    assert (one.tolist(), two.tolist()) == ([35, 48], [1, 1]), "a result is not overwritten by the next"
    assert [given.tolist() for given in first] == [[1, 2], [3, 4]], "the caller's tensors are left alone"
    assert gpu.events[-1] == "wait", "a replay runs no Python"


class Steps:
    """Steps whose logits say which rows they had, and to how many tokens these attended."""

    def __init__(self) -> None:
        self.kinds: list[tuple[int, int]] = []  # rows and tokens of each that Python ran

    def __call__(self, ids: Tensor, positions: Tensor, lengths: Tensor, max_len: int) -> Tensor:
        self.kinds.append((len(ids), max_len))
        return torch.stack([ids, positions, lengths, torch.full_like(ids, max_len)], dim=1).float()


def run(recorded: RecordedSteps, n_rows: int, max_len: int) -> None:
    """Run a step, which must give its own rows."""
    ids = torch.randint(1, 99, (n_rows,))
    logits = recorded(ids, ids + 1, ids + 2, max_len)
    assert logits[:, :3].tolist() == torch.stack([ids, ids + 1, ids + 2], dim=1).tolist()
    assert (logits[:, 3] >= max_len).all()


def test_kinds_of_steps_are_counted_in_powers_of_two_and_256_tokens() -> None:
    with replay_on_cpu() as made:
        steps = Steps()
        recorded = RecordedSteps(steps, reads_whole_slots=False)
        assert recorded.resize_cache(12, 600) == 12
        for n_rows, max_len in ((12, 10), (9, 200), (11, 256), (12, 257), (12, 300), (12, 599), (1, 600), (1, 513)):
            run(recorded, n_rows, max_len)

    assert made == [(12, 4), (12, 4), (1, 4)]
    assert set(steps.kinds) == {(12, 256), (12, 512), (12, 600), (1, 600)}


def test_where_the_kernel_reads_whole_slots_their_length_makes_no_kind() -> None:
    with replay_on_cpu() as made:
        recorded = RecordedSteps(Steps(), reads_whole_slots=True)
        recorded.resize_cache(8, 2048)
        for max_len in range(5, 2000, 7):
            run(recorded, 3 + max_len % 2, max_len)

    assert made == [(4, 4)]


def test_recordings_last_until_the_cache_is_resized() -> None:
    with replay_on_cpu() as made:
        recorded = RecordedSteps(Steps(), reads_whole_slots=True)
        for size in ((4, 64), (4, 64), (8, 64), (8, 128), (0, 0), (8, 128)):
            recorded.resize_cache(*size)
            if size[0]:
                run(recorded, 4, 9)
                run(recorded, 3, 9)

    assert len(made) == 4, "memory of another size is recorded anew"


def test_there_are_never_more_than_32_recordings() -> None:
    with replay_on_cpu() as made:
        recorded = RecordedSteps(Steps(), reads_whole_slots=False)
        recorded.resize_cache(1, 256 * 40)
        for max_len in range(100, 256 * 40, 128):
            run(recorded, 1, max_len)

    assert len(made) == 40
    assert len(recorded._recordings) == 32


def test_a_failed_recording_is_told_once_and_steps_go_on(gpu: Gpu) -> None:
    steps = Steps()
    recorded = RecordedSteps(steps, reads_whole_slots=True)
    gpu.error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):  # runs
            recorded.resize_cache(4, 64)
            for _ in range(4):
                run(recorded, 3, 9)
            recorded.resize_cache(0, 0)
            (note,) = recorded.take_notes()
            assert note == (
                "Decode steps cannot be recorded as CUDA graphs (OutOfMemoryError: CUDA out of memory. Tried to "
                "allocate 20.00 MiB); running in eager mode."
            )
    assert [one.category for one in caught] == [QwenVLWarning]
    assert gpu.events[-1] == "wait", "what ran aside is over before its inputs are freed"
    assert steps.kinds[-1] == (3, 9), "an eager step computes no free slots"
    assert recorded.take_notes() == []


def test_answers_of_recorded_steps_are_those_of_plain_ones(pictures: list[Image.Image]) -> None:
    options = {"model_name": "demo", "dtype": "bfloat16", "use_flash_attention_2": False, "progress": False}
    images = pd.Series(pictures[:10])
    plain = images.vl.caption(batch_size=4, **options)
    qwenvl_kit.unload()
    with replay_on_cpu() as made:
        recorded = images.vl.caption(batch_size=4, **options)
    qwenvl_kit.unload()

    assert recorded.tolist() == plain.tolist()
    assert made
    assert any("recorded as CUDA graphs in" in note for note in recorded.attrs["effective"]["notes"])
