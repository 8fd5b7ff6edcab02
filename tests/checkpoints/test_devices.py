"""Where a model runs; GPUs are pretended, since the rules do not depend on them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenvl_kit import Config, ConfigError
from qwenvl_kit.checkpoints.capabilities import check_compilation
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
def flash_attn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Its folder, on the path; each test writes the module."""
    (tmp_path / "flash_attn-2.8.0.dist-info").mkdir()
    (tmp_path / "flash_attn-2.8.0.dist-info" / "METADATA").write_text("Name: flash_attn\nVersion: 2.8.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    yield tmp_path / "flash_attn.py"
    sys.modules.pop("flash_attn", None)


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
@pytest.mark.parametrize(
    ("options", "is_advised"),
    [
        ({"rank": 0}, True),
        ({"device_map": "auto"}, True),
        ({"rank": 1}, False),
        ({"rank": 0, "dtype": "float16"}, False),
        ({"device_map": "cpu"}, False),
    ],
)
def test_bfloat16_on_a_gpu_without_units_for_it_is_told_with_the_dtype_to_pass(
    options: dict[str, Any], is_advised: bool
) -> None:
    advice = find_device(Config(**options)).advice

    assert bool(advice) is is_advised
    if is_advised:
        assert "dtype='bfloat16' is slow on cuda:0 (compute capability 7.5)" in advice[0]
        assert "Pass dtype='float16'." in advice[0]


@pytest.fixture
def old_driver(no_gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A GPU in the machine, a torch for CUDA 13, and a driver for CUDA 12."""

    def refuse() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040). Please update.")

    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr("qwenvl_kit.checkpoints.devices._NVIDIA", tmp_path / "nvidia0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("old_driver")
@pytest.mark.parametrize("options", [{}, {"device_map": "auto"}])
def test_a_gpu_that_the_driver_is_too_old_for_is_not_passed_over_in_silence(options: dict[str, Any]) -> None:
    (advice,) = find_device(Config(**options)).advice

    assert "too old (found version 12040)" in advice
    assert "CUDA 13.0 needs driver 580 or newer" in advice
    assert advice.endswith("The model runs on the CPU.")
    with pytest.raises(ConfigError, match=r"too old.*Pass rank=None"):
        find_device(Config(rank=0))


@pytest.mark.usefixtures("old_driver")
def test_a_gpu_that_the_user_hides_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device(Config(device_map="cpu")).advice == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_device(Config()).advice == ()


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device_map", "spans"),
    [
        ("auto", True),
        ("balanced", True),
        ("sequential", False),  # loading tells
        ("cuda:1", False),
        ({"": "cuda:1"}, False),
        ({"model": 0, "lm_head": "cuda:0"}, False),
        ({"model": 0, "lm_head": "cpu"}, True),
    ],
)
def test_compiled_steps_are_refused_only_where_a_device_map_spans_devices(device_map: Any, spans: bool) -> None:
    config = Config(device_map=device_map, torch_compile=True)

    assert find_device(config).spans is spans
    assert bool(check_compilation(config, find_device(config))) is spans


def test_a_map_that_may_spread_over_one_gpu_is_settled_by_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))

    assert not find_device(Config(device_map="auto")).spans


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
