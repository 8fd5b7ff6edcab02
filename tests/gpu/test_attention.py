"""SDPA of a decode step on a GPU: right at every length, and no new plan for a new length."""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from gpu.conftest import DEVICE, on_gpu
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qwenvl_kit.torch_backend.attention import without_cudnn

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
    """Return query, key, value and mask as `grouped_sdpa` passes them; keys and values are views of a cache."""
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
