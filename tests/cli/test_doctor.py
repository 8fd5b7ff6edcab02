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
