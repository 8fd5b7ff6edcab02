"""Saved data sets are what their readers expect, whole, and name what they cannot hold."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import qwenvl_kit.accessor  # noqa: F401  # registers df.vl
from qwenvl_kit.errors import ConfigError, RowErrorWarning


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    for level, name in enumerate(("a.jpg", "b 🐕.png", "c.webp")):
        Image.new("RGB", (8, 8), (level, 0, 0)).save(tmp_path / name)
    images = [str(tmp_path / name) for name in ("a.jpg", "b 🐕.png", "c.webp")]
    return pd.DataFrame({"image": images, "caption": ["One, 猫.", "Two\nlines.", None], "ask": ["What?", None, "Who?"]})


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("t.parquet", pd.read_parquet),
        ("t.csv", pd.read_csv),
        ("t.jsonl", lambda path: pd.read_json(path, lines=True)),
    ],
)
def test_tables_have_all_columns_of_rows_with_a_caption(frame: pd.DataFrame, tmp_path: Path, name: str, read) -> None:  # type: ignore[no-untyped-def]
    assert frame.vl.save(tmp_path / name) == [tmp_path / name]

    assert read(tmp_path / name)["caption"].tolist() == ["One, 猫.", "Two\nlines."]
    assert list(read(tmp_path / name).columns) == ["image", "caption", "ask"]


def test_conversations_are_those_of_llama_factory_and_llava(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.vl.save(tmp_path / "s.json", format="sharegpt", prompts="ask", prompt="Describe it.")
    frame.vl.save(tmp_path / "l.json", format="llava", prompts="ask", prompt="Describe it.")

    shared = json.loads((tmp_path / "s.json").read_text("utf-8"))
    assert [one["images"] for one in shared] == [[frame["image"][0]], [frame["image"][1]]]
    assert shared[1]["conversations"] == [
        {"from": "human", "value": "<image>Describe it."},
        {"from": "gpt", "value": "Two\nlines."},
    ]
    llava = json.loads((tmp_path / "l.json").read_text("utf-8"))
    assert [one["image"] for one in llava] == frame["image"][:2].tolist()
    assert llava[0]["conversations"][0]["value"] == "<image>\nWhat?"


def test_shards_hold_the_files_bytes_captions_and_prompts(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame = pd.concat([frame, pd.DataFrame({"image": [np.zeros((4, 6, 3), np.uint8)], "caption": ["Black."]})])

    files = frame.vl.save(tmp_path / "train.tar", prompt="Describe it.", rows_per_shard=2)

    assert [file.name for file in files] == ["train-000000.tar", "train-000001.tar"]
    members: dict[str, bytes] = {}
    for file in files:
        with tarfile.open(file) as tar:
            members |= {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    assert list(members)[:3] == ["000000000.jpg", "000000000.txt", "000000000.json"], "a sample's files are adjacent"
    assert members["000000000.jpg"] == Path(frame["image"].iloc[0]).read_bytes()
    assert members["000000001.txt"].decode() == "Two\nlines."
    assert json.loads(members["000000001.json"]) == {"prompt": "Describe it."}
    assert Image.open(io.BytesIO(members["000000002.png"])).size == (6, 4)
    with pytest.raises(ConfigError, match="exists"):
        frame.vl.save(tmp_path / "train.tar")


def test_a_row_of_a_shard_whose_image_is_gone_is_left_out_and_told(frame: pd.DataFrame, tmp_path: Path) -> None:
    os.unlink(frame["image"][0])

    with pytest.warns(RowErrorWarning, match="1 of 2 rows were left out, such as row 0"):
        (file,) = frame.vl.save(tmp_path / "train.tar")

    with tarfile.open(file) as tar:
        assert {name.split(".")[0] for name in tar.getnames()} == {"000000001"}


@pytest.mark.parametrize(
    ("cell", "name", "form", "told"),
    [
        ("caf\udce9.png", "t.json", "llava", "not UTF-8"),
        ("caf\udce9.png", "t.parquet", None, "cannot be written as parquet"),
        (np.zeros((4, 4, 3), np.uint8), "t.json", "sharegpt", "no file to name"),
        ("a.png", "t.json", None, "no suffix of a format"),
        ("a.png", "t.txt", "llava", r"writes \*.json files"),
        ("a.png", "t.jsonl", "yaml", "format='yaml' is invalid"),
        ("a.png", "none/t.jsonl", None, "does not exist"),
    ],
)
def test_what_a_format_cannot_hold_is_told_and_nothing_is_left(
    cell: object, name: str, form: str | None, told: str, tmp_path: Path
) -> None:
    frame = pd.DataFrame({"image": pd.Series([cell], dtype=object), "caption": ["A cat."]})

    with pytest.raises(ConfigError, match=told):
        frame.vl.save(tmp_path / name, format=form)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_earlier_file(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.csv").write_text("before")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))

    with pytest.raises(OSError, match="No space left"):
        frame.vl.save(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "before"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".jpg", ".png", ".webp"]


def test_the_verb_is_listed() -> None:
    assert "save" in repr(pd.DataFrame().vl)
