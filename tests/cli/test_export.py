"""``qwenvl-kit export`` and ``optimum-cli export qwenvl``: an export that runs, or a line that says why not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qwenvl_kit.cli import main
from qwenvl_kit.onnx_backend.manifest import read_export


def test_an_export_is_compared_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "demo", str(tmp_path / "onnx"), "--verify", "3"]) == 0

    told = capsys.readouterr().out
    assert "passed: 576 of 576 tokens equal" in told
    assert "backend='onnx'" in told
    assert read_export(tmp_path / "onnx", whole=True).quantize is None


def test_a_missing_model_is_a_line_not_a_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "nothing"), str(tmp_path / "onnx")]) == 2
    assert "was not found in any of" in capsys.readouterr().err


@pytest.mark.slow
def test_optimum_finds_the_command(tmp_path: Path) -> None:
    command = shutil.which("optimum-cli", path=str(Path(sys.executable).parent))
    assert command is not None
    asked = [
        command,
        "export",
        "qwenvl",
        "--model",
        "demo",
        str(tmp_path / "onnx"),
        "--quantize",
        "int8",
        "--verify",
        "0",
    ]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    assert read_export(tmp_path / "onnx").quantize == "int8"
