"""``qwenvl-kit doctor``: what would run, and why not more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwenvl_kit.cli import main


def test_the_doctor_says_what_would_run_and_why_not_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert main(["doctor", "--model-name", "demo"]) == 0

    told = capsys.readouterr().out
    assert f"torch {torch.__version__.split('+')[0]}" in told
    assert "no CUDA device is visible" in told
    assert "attention sdpa" in told
    assert "ignored: use_flash_attention_2=True" in told


def test_the_doctor_names_the_places_where_no_model_was_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    assert main(["doctor", "--model-name", "no/such", "--model-path", str(tmp_path)]) == 1
    assert str(tmp_path / "no" / "such") in capsys.readouterr().out


def test_a_package_that_does_not_import_is_told_with_the_fix(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    real = importlib.import_module

    def broken(name: str, package: str | None = None) -> object:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, package)

    monkeypatch.setattr("qwenvl_kit.cli.doctor.importlib.import_module", broken)
    main(["doctor", "--backend", "echo"])

    told = capsys.readouterr().out
    assert "torchvision does not import" in told
    assert "pip install torch torchvision" in told


def test_a_gpu_that_torch_cannot_use_is_told_with_the_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("qwenvl_kit.checkpoints.devices._NVIDIA", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    assert main(["doctor", "--model-name", "demo"]) == 0

    machine, _, planned = capsys.readouterr().out.partition("What would run")
    for told in (machine, planned):
        assert "needs driver 580 or newer" in told
        assert "Update the driver" in told


def test_the_doctor_says_what_fits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl_kit.tasks import plan_fit

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(plan_fit, "free_memory_of", lambda device: 2**30)
    assert main(["doctor", "--model-name", "demo", "--dtype", "float32"]) == 0
    told = capsys.readouterr().out
    assert "weights of 9 MiB in float32 (5 MiB in bfloat16); cpu has 1.0 GiB free" in told
    assert "16 visual tokens: at most" in told
    assert "; fits" in told

    monkeypatch.setattr(plan_fit, "free_memory_of", lambda device: 2**20)
    main(["doctor", "--model-name", "demo", "--dtype", "float32"])
    assert "does not fit: cpu needs" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_half_download_is_not_called_runnable(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, damage: str
) -> None:
    from helpers.checkpoints import make_published

    shard = make_published(tmp_path / "half") / "model-00001-of-00002.safetensors"
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1000])

    assert main(["doctor", "--model-name", str(tmp_path / "half")]) == 1
    assert "What would run\n  nothing: " in capsys.readouterr().out
