"""SDPA of a decode step on a GPU: right at every length, and no new plan for a new length."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from pathlib import Path

import pytest
import torch
from gpu.conftest import DEVICE, on_gpu
from helpers.flash_kernel import flash_on_cpu
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen2_5_VLForConditionalGeneration

from qwenvl_kit.torch_backend.attention import without_cudnn
from qwenvl_kit.torch_backend.slot_attention import attend_slots, kernel_fault, slot_index
from qwenvl_kit.torch_backend.windows import attend_varlen, has_varlen_kernel

HEADS = [(28, 4), (16, 2), (64, 8)]  # of the 7B, the 3B and the 72B: queries, keys and values
LENGTHS = [
    2,
    7,
    8,
    9,
    31,
    33,
    63,
    64,
    65,
    127,
    128,
    129,
    191,
    192,
    193,
    511,
    703,
    704,
    705,
    1023,
    1025,
    1337,
    2047,
    2049,
]


def decode_inputs(heads: tuple[int, int], n_rows: int, length: int, capacity: int) -> tuple[Tensor, ...]:
    """Return query, key, value and mask as `attend_step` passes them; keys and values are views of a cache."""
    draw = torch.Generator(DEVICE).manual_seed(length)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE, generator=draw).to(torch.bfloat16)

    query = random(n_rows, heads[1], heads[0] // heads[1], 128)
    key, value = (random(n_rows + 2, heads[1], capacity, 128)[:n_rows, :, :length] for _ in range(2))
    lengths = torch.randint(1, length + 1, (n_rows,), device=DEVICE, generator=draw)
    lengths[0] = length
    return query, key, value, (torch.arange(length, device=DEVICE) < lengths[:, None])[:, None, None]


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_the_kernel_of_a_run_is_right_at_every_length(heads: tuple[int, int]) -> None:
    for length in LENGTHS:
        query, key, value, mask = decode_inputs(heads, 5, length, 2112)
        with without_cudnn():
            attended = scaled_dot_product_attention(query, key, value, mask)
        exact = scaled_dot_product_attention(query.double(), key.double(), value.double(), mask)

        assert (attended.double() - exact).abs().max().item() < 2e-2, f"length {length}"


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_kernel_over_slots_is_right_at_every_length(heads: tuple[int, int], dtype: torch.dtype) -> None:
    draw = torch.Generator(DEVICE).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE, generator=draw).to(dtype)

    query = random(len(LENGTHS), heads[0], 1, 128)
    key, value = (random(len(LENGTHS) + 2, 2112, heads[1], 128).transpose(1, 2)[: len(LENGTHS)] for _ in range(2))
    lengths = torch.tensor(LENGTHS, device=DEVICE)
    for part in (key, value):
        for slot, length in enumerate(LENGTHS):
            part[slot, :, length:] = torch.nan  # what a slot does not hold
    kernel = contextlib.nullcontext() if DEVICE == "cuda" else flash_on_cpu()
    with kernel:
        attended = attend_slots(query, key, value, slot_index(lengths - 1, 2112), 128**-0.5)
    for slot, length in enumerate(LENGTHS):
        held = (part[slot, None, :, :length].double() for part in (key, value))
        exact = scaled_dot_product_attention(query[slot, None].double(), *held, enable_gqa=True)
        error = (attended[slot, 0].double() - exact[0, :, 0]).abs().max().item()
        assert error < 2e-2, f"length {length}"


@on_gpu
def test_this_gpu_runs_steps_on_the_kernel(wide: Path) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs compute capability 8.0")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(wide, dtype=torch.bfloat16, device_map=DEVICE)

    assert kernel_fault(model.model.language_model) is None


@on_gpu
def test_a_new_length_needs_no_new_plan() -> None:
    seconds = []
    with without_cudnn():
        for length in range(1300, 1330):
            inputs = decode_inputs((28, 4), 4, length, 1664)
            torch.cuda.synchronize()
            started = time.perf_counter()
            scaled_dot_product_attention(*inputs)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)

    assert statistics.median(seconds) < 5e-3, [round(1e3 * one, 2) for one in seconds]


@on_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_flash_kernel_of_the_vision_tower_is_right_in_windows_of_any_length(dtype: torch.dtype) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("older than Ampere")
    lengths = [64] * 30 + [16, 4, 48, 1296, 5184]
    draw = torch.Generator(DEVICE).manual_seed(0)
    query, key, value = torch.randn(3, sum(lengths), 16, 80, device=DEVICE, generator=draw).to(dtype)
    borders = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=DEVICE)

    assert has_varlen_kernel(torch.device("cuda:0"), dtype, 80)
    attended = attend_varlen(query, key, value, borders, max(lengths), 80**-0.5)

    for start, end in itertools.pairwise(borders.tolist()):
        heads = [each[start:end].double().transpose(0, 1) for each in (query, key, value)]  # (H, l, d)
        exact = scaled_dot_product_attention(*heads).transpose(0, 1)
        assert (attended[start:end].double() - exact).abs().max().item() < 2e-2, (start, end)
