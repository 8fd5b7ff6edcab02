"""``qwenvl-kit conform`` and the exported checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import qwenvl_kit
from qwenvl_kit.checkpoints.checkpoint import read
from qwenvl_kit.cli import main
from qwenvl_kit.demo import MODEL_DIR
from qwenvl_kit.demo.exported import REPETITION_PENALTY


def verdicts(*, passed: bool) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "layer": ["M-RoPE", "EXIF"],
            "verdict": ["pass", "pass" if passed else "fail"],
            "cases": [14, 4],
            "differ": [0, 0 if passed else 4],
            "logprob_difference": pd.array([1e-6, None], dtype="Float64"),
            "detail": ["", "" if passed else "not turned\x1b[2J"],
        }
    )
    frame.attrs = {"passed": passed, "conform": {"tolerance": 0.5}}
    return frame


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `conform` was called with; the engine has a fault."""
    calls: list[dict[str, Any]] = []

    def conform(images: object, **options: Any) -> pd.DataFrame:
        calls.append({"images": images, **options})
        return verdicts(passed=options.get("scene_seed") == 1)

    monkeypatch.setattr(qwenvl_kit, "conform", conform)
    return calls


def test_a_failed_layer_is_printed_and_is_the_exit_status(
    asked: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "verdicts.json"

    assert main(["conform", "--dtype", "float32", "--tolerance", "0.5", "--json", str(file)]) == 1

    assert capsys.readouterr().out.splitlines() == [
        "M-RoPE              pass       14/14",
        "EXIF                fail         0/4  not turned\\x1b[2J",
        "does not conform",
    ]
    assert asked == [{"images": None, "against": None, "tolerance": 0.5, "scene_seed": 0, "dtype": "float32"}]
    written = json.loads(file.read_text())
    assert written["conform"] == {"tolerance": 0.5}
    assert [row["verdict"] for row in written["rows"]] == ["pass", "fail"]


def test_an_engine_that_passes_ends_with_zero(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conform", "--scene-seed", "1", "--against", '{"dtype": "float32"}']) == 0

    assert capsys.readouterr().out.endswith("conforms\n")
    assert asked[0]["against"] == {"dtype": "float32"}


@pytest.mark.parametrize("text", ["dtype", "[1]"])
def test_options_that_are_no_json_object_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["conform", "--against", text])

    assert "is no JSON" in capsys.readouterr().err


def test_the_exported_checkpoint_has_both_layouts_and_a_penalty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--export-checkpoint", str(tmp_path / "out")]) == 0

    current, former = (Path(line) for line in capsys.readouterr().out.splitlines())
    own = read(MODEL_DIR)
    assert "text_config" in read(current).config
    assert read(former).config["rope_scaling"]["type"] == "mrope"
    for folder in (current, former):
        checkpoint = read(folder)
        assert checkpoint.repetition_penalty == REPETITION_PENALTY
        assert (checkpoint.geometry, checkpoint.context) == (own.geometry, own.context)
        assert checkpoint.eos_token_ids == own.eos_token_ids

    assert main(["demo", "--export-checkpoint", str(tmp_path / "out")]) == 2
    assert "is there already" in capsys.readouterr().err
