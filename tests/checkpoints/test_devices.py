"""Where a model runs; GPUs are pretended, since the rules do not depend on them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenvl_kit import Config, ConfigError
from qwenvl_kit.checkpoints.devices import find_device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Pretended {index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0) if index == 1 else (7, 5))


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

    assert (device.name, device.is_cuda) == ("cuda:1", True)


@pytest.fixture
def flash_attn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its folder, on the path; each test writes the module."""
    (tmp_path / "flash_attn-2.8.0.dist-info").mkdir()
    (tmp_path / "flash_attn-2.8.0.dist-info" / "METADATA").write_text("Name: flash_attn\nVersion: 2.8.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    return tmp_path / "flash_attn.py"


@pytest.mark.usefixtures("two_gpus")
def test_flash_attention_is_used_where_all_gpus_support_it(flash_attn: Path) -> None:
    flash_attn.write_text("")

    assert find_device(Config(rank=1)).flash_attention == "2.8.0"
    for older in (find_device(Config(rank=0)), find_device(Config(device_map="auto"))):
        assert older.flash_attention is None
        assert older.flash_fault == "cuda:0 has compute capability 7.5; flash-attn requires 8.0"


@pytest.mark.usefixtures("two_gpus")
def test_a_flash_attention_for_another_torch_ends_no_run(flash_attn: Path) -> None:
    flash_attn.write_text("raise ImportError('undefined symbol: _ZN3c10')")
    device = find_device(Config(rank=1))

    assert device.flash_attention is None
    assert device.flash_fault.startswith("flash-attn does not import (ImportError: undefined symbol: _ZN3c10)")


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
