"""SDPA without cuDNN while a run lasts, and errors of memory in all their names."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pytest
import torch
from helpers.fake_backends import gray

from qwenvl_kit import Control
from qwenvl_kit.torch_backend.attention import without_cudnn

EXACT = {"model_name": "demo", "dtype": "float32", "use_flash_attention_2": False, "progress": False}


def is_enabled() -> bool:
    return torch.backends.cuda.cudnn_sdp_enabled()


@pytest.fixture(params=[True, False], ids=["enabled", "disabled"])
def before(request: pytest.FixtureRequest) -> Iterator[bool]:
    was = is_enabled()
    torch.backends.cuda.enable_cudnn_sdp(request.param)
    yield request.param
    torch.backends.cuda.enable_cudnn_sdp(was)


def test_cudnn_is_off_until_the_last_of_several_runs_ends(before: bool) -> None:
    first, second = without_cudnn(), without_cudnn()
    with first:
        second.__enter__()
        assert not is_enabled()
    assert not is_enabled()
    second.__exit__(None, None, None)

    assert is_enabled() is before


@pytest.mark.parametrize("num_beams", [1, 2])
def test_a_run_generates_without_cudnn_and_restores_it(before: bool, num_beams: int) -> None:
    seen: list[bool] = []
    control = Control(on_token=lambda *_: seen.append(is_enabled()))
    pd.Series([gray(1)]).vl.caption(**EXACT, max_caption_length=2, num_beams=num_beams, control=control)

    assert seen
    assert not any(seen)
    assert is_enabled() is before


def test_a_whole_number_is_a_repetition_penalty() -> None:
    run = pd.Series([gray(1)]).vl.run(**EXACT, max_caption_length=2, repetition_penalty=2)

    assert run["status"].tolist() == ["ok"]
