"""Patches have the image processor's numbers, bit by bit, and are computed on the device from uint8."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from qwenvl_kit.checkpoints.checkpoint import read
from qwenvl_kit.checkpoints.loading import load_processor
from qwenvl_kit.demo import model_dir
from qwenvl_kit.inference import patches
from qwenvl_kit.inference.patches import PatchCutter


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load_processor(read(model_dir())).image_processor


@pytest.fixture
def processor(loaded: Any) -> Any:
    return copy.copy(loaded)


def drawn(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def processed(processor: Any, pixels: Any) -> Tensor:
    image = torch.tensor(pixels).permute(2, 0, 1)
    found: Tensor = processor(images=[image], do_resize=False, return_tensors="pt")["pixel_values"]
    return found


side = st.integers(1, 12).map(lambda n: 28 * n)
moments = st.tuples(*[st.floats(0.0625, 1)] * 3)


@given(side, side, moments, moments, st.integers(0, 9))
def test_patches_are_bit_for_bit_those_of_the_image_processor(
    loaded: Any, height: int, width: int, mean: Any, deviation: Any, seed: int
) -> None:
    processor = copy.copy(loaded)
    processor.image_mean, processor.image_std = mean, deviation
    pixels = drawn(height, width, seed)

    assert torch.equal(PatchCutter(processor).cut(pixels), processed(processor, pixels))


@pytest.mark.parametrize("off", ["do_rescale", "do_normalize"])
def test_a_processor_that_leaves_out_a_step_is_followed(processor: Any, off: str) -> None:
    setattr(processor, off, False)
    pixels = drawn(56, 84)

    assert torch.equal(PatchCutter(processor).cut(pixels), processed(processor, pixels))


def test_an_array_that_may_not_be_written_stays_as_it_is(processor: Any) -> None:
    pixels = drawn(56, 56)
    pixels.flags.writeable = False
    before = pixels.copy()

    PatchCutter(processor).cut(pixels)

    assert (pixels == before).all()


def test_on_a_gpu_only_bytes_travel_and_nothing_waits(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    travelled: list[Tensor] = []

    def pretended(tensor: Tensor, device: torch.device) -> Tensor:
        travelled.append(tensor)
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    monkeypatch.setattr(patches, "upload", pretended)
    device = torch.device("cuda:0")
    cutter = PatchCutter(processor)
    with FakeTensorMode(allow_non_fake_inputs=True):  # reading a fake tensor from the host raises
        cutter._moments[device] = (torch.empty(3, 1, 1, device=device), torch.empty(3, 1, 1, device=device))
        found = cutter.cut(drawn(1008, 1008), device)

    assert found.device == device
    assert (found.shape, found.dtype) == ((5184, 1176), torch.float32)
    assert [one.dtype for one in travelled] == [torch.uint8]
    assert 8 * sum(one.nbytes for one in travelled) == found.nbytes
