"""Where a model runs; GPUs are pretended, since the rules do not depend on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qwenvl_kit import Config, ConfigError
from qwenvl_kit.checkpoints import devices
from qwenvl_kit.checkpoints.devices import find_device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Pretended {index}")
    monkeypatch.setattr(devices, "flash_attention_version", lambda: "2.8.0")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.usefixtures("two_gpus")
def test_the_first_gpu_is_used_where_nothing_is_said() -> None:
    assert find_device(Config()).name == "cuda:0"


@pytest.mark.usefixtures("two_gpus")
def test_rank_chooses_among_the_visible_gpus() -> None:
    device = find_device(Config(rank=1))

    assert (device.name, device.is_cuda, device.flash_attention) == ("cuda:1", True, "2.8.0")


@pytest.mark.usefixtures("two_gpus")
def test_a_rank_beyond_the_visible_gpus_lists_them() -> None:
    with pytest.raises(ConfigError, match=r"got 2.*cuda:0 Pretended 0, cuda:1 Pretended 1"):
        find_device(Config(rank=2))


@pytest.mark.usefixtures("no_gpu")
def test_a_rank_without_any_gpu_says_what_to_pass() -> None:
    with pytest.raises(ConfigError, match="rank=None"):
        find_device(Config(rank=0))


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_cpu_runs() -> None:
    assert find_device(Config()).name == "cpu"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device_map", "is_cuda"),
    [
        ("auto", True),
        ("cpu", False),
        ("cuda:1", True),
        ({"": 0}, True),
        ({"a": "cpu", "b": "cuda:0"}, True),
        ({"a": "cpu", "b": "disk"}, False),
    ],
)
def test_a_device_map_is_on_cuda_when_any_of_it_is(device_map: Any, is_cuda: bool) -> None:
    assert find_device(Config(device_map=device_map)).is_cuda is is_cuda
