"""Answers say where they come from, and find it again when pandas has dropped it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import qwenvl_kit
from qwenvl_kit.errors import ConfigError, StoreError

ECHO: dict[str, Any] = {"backend": "echo", "progress": False}


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"image": [np.full((28, 28, 3), shade, np.uint8) for shade in (0, 90, 200)]})


def test_a_stamp_names_version_model_options_prompt_and_packages(frame: pd.DataFrame) -> None:
    lines = qwenvl_kit.stamp(frame.vl.caption("image", prompt="What\nis it?", resized_height=56, **ECHO)).splitlines()

    assert lines[0].startswith(f"qwenvl_kit {qwenvl_kit.__version__}, 20")
    assert "backend echo, model echo" in lines[1]
    assert "resized_height 56" in lines[1]
    assert lines[2:4] == ["prompt: What is it?", "rows: 3 ok"]
    assert "transformers" in lines[4]


def test_a_sample_says_how_it_was_drawn(frame: pd.DataFrame) -> None:
    drawn = qwenvl_kit.stamp(frame.vl.caption("image", do_sample=True, seed=7, temperature=0.5, **ECHO))
    greedy = qwenvl_kit.stamp(frame.vl.caption("image", **ECHO))

    assert "temperature 0.5" in drawn
    assert "seed 7" in drawn
    assert "temperature" not in greedy


def test_a_column_gets_its_record_back_from_the_store_sorted_or_not(frame: pd.DataFrame, tmp_path: Path) -> None:
    store = tmp_path / "answers.db"
    frame.vl.caption("image", prompt="Another question?", store=str(store), **ECHO)
    frame["caption"] = frame.vl.caption("image", store=str(store), **ECHO)
    frame.loc[0, "image"] = None
    assert not frame["caption"].attrs

    for column in (frame["caption"], frame.sort_values("caption", ascending=False)["caption"]):
        found = qwenvl_kit.restamp(column, store=store)
        assert found.attrs["prompts"] == [qwenvl_kit.Config().prompt]
        pd.testing.assert_series_equal(found, column)
        assert qwenvl_kit.stamp(found).startswith("qwenvl_kit")
    assert not frame["caption"].attrs  # a new series; the caller's stays as it is


def test_what_cannot_be_stamped_says_why(frame: pd.DataFrame, tmp_path: Path) -> None:
    store = tmp_path / "answers.db"
    frame["caption"] = frame.vl.caption("image", store=str(store), **ECHO)

    with pytest.raises(ConfigError, match=r"no record of a run.*restamp"):
        qwenvl_kit.stamp(pd.Series(["a cat"]))
    with pytest.raises(ConfigError, match="gave exactly these 2 answers"):
        qwenvl_kit.restamp(frame["caption"].iloc[:2], store=store)
    with pytest.raises(StoreError):
        qwenvl_kit.restamp(frame["caption"], store=tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()


def test_tables_of_comparisons_bear_their_stamp(frame: pd.DataFrame) -> None:
    found = frame.vl.compare("image", vary={"resized_height": [28, 56]}, prompt="<b>?", max_caption_length=5, **ECHO)

    latex, page = found.to_latex(), found.to_html()
    assert latex.startswith("% qwenvl_kit ")
    assert "% varied: resized_height\n% prompt: <b>?" in latex
    assert "\\toprule" in latex
    assert "prompt: &lt;b&gt;?" in page
    assert "resized_height 28" not in page  # what varies is no option of all settings
    assert "<table" in page
