"""``qwenvl-kit caption`` as a shell sees it: files written, lines printed, exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from qwenvl_kit.cli import main

ECHO = ["--backend", "echo", "--no-progress"]
EXIF_ORIENTATION = 0x0112


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Good, truncated, CMYK, rotated and non-image files, and one hidden."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = Image.effect_noise((120, 60), 50).convert("RGB")
    picture.save(folder / "a_good.png")
    whole = folder / "b_truncated.jpg"
    picture.save(whole)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    picture.convert("CMYK").save(folder / "c_cmyk.jpg")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    picture.save(folder / "d_rotated.jpg", exif=exif)
    (folder / "e_notes.txt").write_text("no picture")
    (folder / ".hidden").write_text("not looked at")
    return folder


def read(out: Path) -> pd.DataFrame:
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda path: pd.read_json(path, lines=True)}
    return readers[out.suffix](out)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_mixed_folder_gives_one_row_each_and_names_the_errors(
    folder: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"captions{suffix}"

    status = main(["caption", str(folder), "--out", str(out), *ECHO])

    assert status == 0
    table = read(out)
    assert [Path(image).name for image in table["image"]] == [
        "a_good.png",
        "b_truncated.jpg",
        "c_cmyk.jpg",
        "d_rotated.jpg",
        "e_notes.txt",
    ]
    assert table["status"].tolist() == ["ok", "error", "ok", "ok", "error"]
    rotated = table[table["image"].str.endswith("d_rotated.jpg")].iloc[0]
    assert rotated["height"] > rotated["width"]
    told = capsys.readouterr().err
    assert "b_truncated.jpg" in told
    assert "e_notes.txt" in told


def test_what_ran_is_written_beside_the_table(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.csv"

    main(["caption", str(folder / "a_good.png"), "--out", str(out), "--batch-size", "2", *ECHO])

    record = json.loads((tmp_path / "captions.csv.config.json").read_text())
    assert record["asked"] == {"backend": "echo", "batch_size": 2, "progress": False}
    assert record["effective"]["attention"] == "sdpa"


def test_on_error_raise_writes_all_rows_and_fails_with_the_names(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "captions.csv"

    status = main(["caption", str(folder), "--out", str(out), "--on-error", "raise", *ECHO])

    assert status == 1
    assert len(read(out)) == 5
    told = capsys.readouterr().err
    assert "b_truncated.jpg" in told
    assert "e_notes.txt" in told


def test_without_out_the_captions_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["caption", str(folder / "a_good.png"), "--prompt", "What is it?", *ECHO])

    assert "a_good.png\tWhat is it?" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["caption", "x.png", "--dtype", "fp8"], "dtype must be one of"),
        (["caption", "x.png", "--out", "captions.xlsx"], "captions.csv"),
        (["caption", "x.png", "--out", "no/such/folder/captions.csv"], "folder that exists"),
        (["caption", "no-such-folder/"], "there is no folder"),
        (["caption", "x.png", "--model-name", "no/such-model", "--model-path", "nowhere"], "demo"),
    ],
    ids=["bad-dtype", "bad-format", "no-out-folder", "no-folder", "no-model"],
)
def test_wrong_words_end_with_status_2_and_say_the_fix(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_every_option_can_be_given_as_a_flag(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.csv"
    flags = {
        "--resized-height": "none",
        "--resized-width": "112",
        "--do-sample": None,
        "--temperature": "0.5",
        "--top-k": "0",
        "--top-p": "0.9",
        "--seed": "3",
        "--max-caption-length": "7",
        "--repetition-penalty": "1.1",
        "--no-use-flash-attention-2": None,
        "--image-src-type": "image_url",
        "--timeout-s": "2.5",
        "--device-map": '{"": "cpu"}',
        "--max-memory": '{"0": "2GiB", "cpu": "4GiB"}',
    }
    words = [word for flag, value in flags.items() for word in (flag, value) if word is not None]

    assert main(["caption", str(folder / "a_good.png"), "--out", str(out), *words, *ECHO]) == 0

    asked = json.loads((tmp_path / "captions.csv.config.json").read_text())["asked"]
    assert asked["resized_height"] is None
    assert asked["resized_width"] == 112
    assert asked["device_map"] == {"": "cpu"}
    assert asked["max_memory"] == {"0": "2GiB", "cpu": "4GiB"}
    assert asked["do_sample"] is True
    assert asked["use_flash_attention_2"] is False
