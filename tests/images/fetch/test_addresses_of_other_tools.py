"""Addresses as Java, Spark and HTML write them: read, or told what they lack."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from qwenvl_kit import RowErrorWarning


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 30), "red").save(path)
    return path


def test_file_addresses_with_one_slash_are_read(file: Path) -> None:
    rows = pd.Series([f"file:{file}", f"FILE:{file}"]).vl.run(backend="echo", progress=False)

    assert list(rows["status"]) == ["ok", "ok"]


def test_an_address_without_a_scheme_is_told_as_one() -> None:
    with pytest.warns(RowErrorWarning, match="scheme"):
        rows = pd.Series(["//cdn.example/a.jpg"]).vl.run(backend="echo", progress=False)

    assert list(rows["stage"]) == ["fetch"]
