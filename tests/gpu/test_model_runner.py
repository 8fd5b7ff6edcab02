"""Decode steps on a GPU: near to float32, recorded, without a wait, and with their memory given back."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.conftest import DEVICE, on_gpu
from helpers.fake_model_runner import PlainProcessor, requests_of, resolved_of
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from qwenvl_kit import Config
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.inference.model_runner import PrefillChunk
from qwenvl_kit.inference.sampler import Sampler
from qwenvl_kit.torch_backend.backend import TorchBackend

LENGTHS, N_STEPS = (37, 200, 511), 6


@contextmanager
def loaded(folder: Path, **options: Any) -> Iterator[Any]:
    """Load a backend and give its model runner."""
    backend = make_spec(Config(model_name=str(folder), use_flash_attention_2=False, **options)).load()
    assert isinstance(backend, TorchBackend)
    try:
        yield backend.model_runner
    finally:
        backend.close()


def prompt(n: int, slot: int, device: str = DEVICE) -> PrefillChunk:
    ids = torch.randint(20, 500, (n,), generator=torch.Generator().manual_seed(slot)).to(device)
    return PrefillChunk(slot, ids, torch.arange(n, device=device).expand(3, -1))


def reference(folder: Path, dtype: torch.dtype, texts: list[Tensor]) -> list[Tensor]:
    """Return transformers' logits after each text."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, device_map=DEVICE, attn_implementation="sdpa", local_files_only=True
    ).eval()
    with torch.inference_mode():
        return [model(input_ids=ids[None], use_cache=False).logits[0, -1].float() for ids in texts]


def filled(value: int | list[int], n: int = 1) -> Tensor:
    return torch.tensor(value if isinstance(value, list) else [value] * n, device=DEVICE)


@pytest.mark.parametrize("torch_compile", [False, True], ids=["eager", "compiled"])
def test_decode_steps_are_as_near_to_float32_as_transformers_own_forward(wide: Path, torch_compile: bool) -> None:
    answers = torch.randint(20, 500, (N_STEPS, len(LENGTHS)), generator=torch.Generator().manual_seed(9)).to(DEVICE)
    prompts = [prompt(n, slot) for slot, n in enumerate(LENGTHS)]
    texts = [torch.cat([one.ids, answers[: at + 1, one.slot]]) for at in range(N_STEPS) for one in prompts]
    exact, theirs = reference(wide, torch.float32, texts), reference(wide, torch.bfloat16, texts)
    with loaded(wide, dtype="bfloat16", torch_compile=torch_compile) as runner:
        runner.resize_cache(len(LENGTHS), 576)
        runner.prefill(prompts)
        lengths = [torch.tensor(LENGTHS, device=DEVICE) + at for at in range(N_STEPS)]
        max_len = max(LENGTHS) + 1
        ours = [row for at, held in enumerate(lengths) for row in runner.decode(answers[at], held, held, max_len + at)]

    errors = [sum((a - b).abs().mean().item() for a, b in zip(each, exact, strict=True)) for each in (ours, theirs)]
    assert errors[0] <= 1.5 * errors[1]


@contextmanager
def counted_waits() -> Iterator[list[Any]]:
    """Give a list that has the waits for the GPU in it afterwards."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        waits: list[Any] = []
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
            waits += [one for one in caught if "synchron" in str(one.message)]


@on_gpu
@pytest.mark.parametrize("is_recorded", [False, True], ids=["eager", "recorded"])
def test_a_decode_step_does_not_wait_for_the_gpu(wide: Path, is_recorded: bool) -> None:
    with loaded(wide, dtype="bfloat16") as runner:
        assert runner._steps is not None
        if not is_recorded:
            runner._steps = None
        runner.resize_cache(4, 576)
        runner.prefill([prompt(100, slot) for slot in range(4)])
        step = filled(30, 4), filled(100, 4), filled(100, 4), 101
        for _ in range(3):  # loads kernels, records, replays
            runner.decode(*step)
        with counted_waits() as waits:
            runner.decode(*step)

    assert not waits


@on_gpu
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_p": 0.9}], ids=["greedy", "sampling"])
def test_sampling_waits_once_for_all_rows(options: dict[str, Any]) -> None:
    sampler = Sampler(replace(resolved_of(**options), repetition_penalty=1.05))
    sequences = [PlainProcessor().encode(one) for one in requests_of([(row, row % 5, 40) for row in range(32)])]
    for at in range(3):
        logits = torch.randn(32, 151_936, device=DEVICE)
        with counted_waits() as waits:
            tokens = sampler.sample(logits, sequences).ids
        for token, sequence in zip(tokens, sequences, strict=True):
            sequence.append_token(token, (), stop_repetition=False)
        assert at == 0 or len(waits) == 1


@on_gpu
def test_recorded_steps_give_the_logits_of_plain_ones(wide: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    with loaded(wide, dtype="bfloat16") as runner:
        recorded = runner._steps
        runner.resize_cache(8, 1024)
        runner.prefill([prompt(100 + 40 * slot, slot) for slot in range(8)])
        for at in range(12):
            n_rows = (8, 7, 5, 3)[at % 4]  # of two recordings
            ids = torch.randint(20, 500, (n_rows,), generator=draw).to(DEVICE)
            held = torch.tensor([100 + 40 * slot + at for slot in range(n_rows)], device=DEVICE)
            ours = recorded(ids, held, held, 400 + at)
            plain = runner._eager_step(ids, held, held, 400 + at)
            torch.testing.assert_close(ours, plain, atol=0.1, rtol=0.05)

        assert any("recorded as CUDA graphs" in note for note in runner.take_notes())


@on_gpu
@pytest.mark.parametrize("torch_compile", [False, True], ids=["plain", "compiled"])
def test_graphs_survive_growth_of_the_cache_and_other_threads_on_the_gpu(wide: Path, torch_compile: bool) -> None:
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            torch.randn(256, 256, device=DEVICE).matmul(torch.randn(256, 256, device=DEVICE)).sum().item()

    other = threading.Thread(target=disturb)
    other.start()
    try:
        with loaded(wide, dtype="bfloat16", torch_compile=torch_compile) as runner:
            for n_slots, capacity in ((2, 576), (4, 576), (4, 1024), (8, 1024), (0, 0), (3, 640)):
                runner.resize_cache(n_slots, capacity)
                if n_slots:
                    runner.prefill([prompt(100, slot) for slot in range(2)])
                    step = filled([30, 40]), filled(100, 2), filled(100, 2), 101
                    first, *later = (runner.decode(*step) for _ in range(4))  # eager, recorded, replayed
                    for one in later:
                        torch.testing.assert_close(one, first, atol=0.1, rtol=0.05)
    finally:
        stop.set()
        other.join()


@on_gpu
@pytest.mark.parametrize("torch_compile", [False, True], ids=["plain", "compiled"])
def test_a_second_gpu_records_a_graph_of_its_own(tiny: Path, torch_compile: bool) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for rank in (0, 1):
        place = f"cuda:{rank}"
        with loaded(tiny, dtype="bfloat16", torch_compile=torch_compile, rank=rank) as runner:
            runner.resize_cache(2, 128)
            runner.prefill([prompt(20, 0, place)])
            steps = [[torch.tensor([n], device=place) for n in (token, 20, 20)] for token in (30, 31, 32, 33)]
            answers = {runner.decode(*step, 21).argmax().item() for step in steps}

        assert len(answers) > 1, "an empty graph repeats its first logits"


@on_gpu
@pytest.mark.parametrize("torch_compile", [False, True], ids=["plain", "compiled"])
def test_closing_gives_all_memory_back(wide: Path, torch_compile: bool) -> None:
    before = torch.cuda.memory_allocated()
    with loaded(wide, dtype="bfloat16", torch_compile=torch_compile) as runner:
        runner.resize_cache(4, 576)
        runner.prefill([prompt(100, slot) for slot in range(4)])
        for _ in range(3):
            runner.decode(filled(100, 4), filled(100, 4), filled(100, 4), 101)
        del runner

    assert torch.cuda.memory_allocated() - before < 64 * 2**20
