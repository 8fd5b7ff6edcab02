"""Attention of decode steps: over slots as they are where torch's kernel can, else SDPA, with the reason on record."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.flash_kernel import flash_on_cpu
from torch import Tensor
from transformers import AttentionInterface, Qwen2_5_VLForConditionalGeneration

from qwenvl_kit.demo import model_dir
from qwenvl_kit.inference.backend import RunControl
from qwenvl_kit.torch_backend import backend, slot_attention
from qwenvl_kit.torch_backend.attention import step_attention
from qwenvl_kit.torch_backend.kv_cache import DecodeWrite, SlottedKVCache
from qwenvl_kit.torch_backend.model_runner import TorchModelRunner
from qwenvl_kit.torch_backend.slot_attention import attend_slots, kernel_fault, slot_index

CPU = torch.device("cpu")
SHAPE = (CPU, torch.bfloat16, 8, 2, 32)  # device, dtype, heads, groups and width of a head


@pytest.fixture
def flash() -> Iterator[None]:
    with flash_on_cpu():
        yield


@pytest.fixture(autouse=True)
def _capable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    slot_attention._fault.cache_clear()
    yield
    slot_attention._fault.cache_clear()


def test_a_row_attends_to_what_its_slot_holds_and_to_nothing_else(flash: None) -> None:
    draw = torch.Generator().manual_seed(0)
    cache = SlottedKVCache(is_token_major=True)
    cache.resize_cache(4, 64)
    lengths = torch.tensor([0, 20, 63])
    cache.write = DecodeWrite(lengths, None)
    new = [torch.randn(3, 2, 1, 32, generator=draw) for _ in range(2)]
    cache.update(*new, 0)  # allocates
    for part in cache.layers[0]:
        part.copy_(torch.randn(part.shape, generator=draw))
        for row, length in enumerate(lengths):
            part[row, :, length:] = torch.nan
        part[3] = torch.nan  # a free slot
    keys, values = cache.update(*new, 0)
    query = torch.randn(3, 8, 1, 32, generator=draw)

    attended = attend_slots(query, keys, values, slot_index(lengths, cache.capacity), 0.2)

    assert attended.shape == (3, 1, 8, 32)
    for row, length in enumerate(lengths.tolist()):
        key, value = (part[row, :, : length + 1].repeat_interleave(4, dim=0) for part in (keys, values))
        weights = (query[row] @ key.transpose(1, 2) * 0.2).softmax(dim=-1)
        torch.testing.assert_close(attended[row, 0], (weights @ value)[:, 0])


def test_a_kernel_that_works_is_used(flash: None) -> None:
    assert slot_attention._fault(*SHAPE) is None


def test_without_a_kernel_the_reason_is_given() -> None:
    assert str(slot_attention._fault(*SHAPE)).endswith("refuses the flash kernel (NotImplementedError)")


@pytest.mark.parametrize("error", [RuntimeError("no kernel image"), TypeError("unexpected keyword seqused_k")])
def test_a_kernel_of_another_torch_is_not_used(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise error

    monkeypatch.setattr(slot_attention, "attend_slots", refuse)
    assert type(error).__name__ in str(slot_attention._fault(*SHAPE))


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_a_kernel_that_is_wrong_is_not_used(value: float, flash: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = attend_slots

    def wrong(*given: Any) -> Tensor:
        attended = right(*given)
        attended[2, 0, 3] = value
        return attended

    monkeypatch.setattr(slot_attention, "attend_slots", wrong)
    assert "differs from SDPA" in str(slot_attention._fault(*SHAPE))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((CPU, torch.float32, 8, 2, 32), "torch.float32 has no flash kernel"),
        ((CPU, torch.bfloat16, 8, 2, 20), "heads of 20"),
        ((CPU, torch.bfloat16, 8, 2, 512), "heads of 512"),
    ],
)
def test_what_the_kernel_cannot_do_is_not_tried(shape: Any, reason: str, flash: None) -> None:
    assert reason in str(slot_attention._fault(*shape))


def test_a_gpu_before_ampere_is_named(flash: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert "compute capability 7.5" in str(slot_attention._fault(*SHAPE))


@pytest.fixture
def model() -> Any:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model_dir(), dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    )


def test_layers_on_a_cpu_run_on_sdpa(model: Any) -> None:
    assert kernel_fault(model.model.language_model) == "layers are not on CUDA"


@pytest.mark.parametrize("own", ["sdpa", "flash_attention_2"])
def test_prompts_and_beams_keep_the_models_own_attention(own: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers makes no masks for an attention that it does not know, so padding would be attended to."""
    config = model.model.language_model.config
    config._attn_implementation = own
    runner = TorchModelRunner(model)
    assert config._attn_implementation == own
    monkeypatch.setattr(runner, "_step", lambda *_: AttentionInterface()[config._attn_implementation].__name__)
    step: Any = runner.decode(*[torch.tensor([1])] * 3, 2)
    assert step == "attend_step"
    assert config._attn_implementation == own

    with pytest.raises(KeyboardInterrupt), step_attention(model.model.language_model):
        raise KeyboardInterrupt
    assert config._attn_implementation == own
    masks = runner._masks.of_step(torch.tensor([3, 5]), 6, 8)
    assert {mask.shape for mask in masks.values() if mask is not None} == {(2, 1, 1, 6)}


@pytest.mark.parametrize("fault", [None, "cuda:0 is old"])
def test_what_steps_attend_with_on_a_gpu_is_on_record(fault: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "generate", lambda *_: iter(()))
    one: Any = object.__new__(backend.TorchBackend)
    one.model_runner = SimpleNamespace(device=torch.device("cuda"), step_kernel_fault=fault, take_notes=list)
    one.encoder_cache = one.tokenization = one._cache_memory = None
    notes: list[str] = []
    list(one._decode(None, None, RunControl(note=notes.append)))

    kernel = f"SDPA ({fault})" if fault else "torch's flash kernel"
    assert notes == [f"Decode attention runs on {kernel}."]
