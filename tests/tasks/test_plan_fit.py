"""What does not fit is told with figures, and each remedy was computed to fit."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from qwenvl_kit.tasks import plan_fit

pytestmark = pytest.mark.model
GIB = 2**30


def cells(n_rows: int = 4, side: int = 3000) -> pd.Series:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(file, "PNG")
    return pd.Series([file.getvalue()] * n_rows)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers.checkpoints import make_published

    return make_published(tmp_path_factory.mktemp("big"), max_pixels=12_845_056, context=100_000)


def plan(monkeypatch: pytest.MonkeyPatch, folder: Path, *, free: int, **options: Any) -> Any:
    monkeypatch.setattr(plan_fit, "free_memory_of", lambda device: free)
    return cells().vl.plan(model_name=str(folder), progress=False, **{"rows_in_flight": 4, **options})


def needed(found: Any) -> int:
    is_taken = found.memory["part"].isin(["this process", "weight files while loading"])
    return int(found.memory.loc[~is_taken, "bytes"].sum())


def test_a_run_that_fits_has_no_problems(monkeypatch: pytest.MonkeyPatch, big: Path) -> None:
    found = plan(monkeypatch, big, free=100 * GIB, dtype="float32")

    assert found.fits is True
    assert found.problems == ()
    assert str(found).endswith("fits    yes")


def test_each_remedy_alone_makes_it_fit(monkeypatch: pytest.MonkeyPatch, big: Path) -> None:
    whole = needed(plan(monkeypatch, big, free=100 * GIB, dtype="float32"))
    free = int(0.9 * whole)

    found = plan(monkeypatch, big, free=free, dtype="float32")

    assert found.fits is False
    (problem,) = found.problems
    (pixels,) = re.findall(r"max_pixels=(\d+)", problem)
    assert plan(monkeypatch, big, free=free, dtype="float32", max_pixels=int(pixels)).fits
    assert not plan(monkeypatch, big, free=free, dtype="float32", max_pixels=int(pixels) + 80_000).fits
    assert ("dtype='bfloat16'" in problem) == plan(monkeypatch, big, free=free, dtype="bfloat16").fits
    for n_rows in re.findall(r"rows_in_flight=(\d+)", problem):
        assert plan(monkeypatch, big, free=free, dtype="float32", rows_in_flight=int(n_rows)).fits


def test_weights_that_fit_nowhere_name_a_smaller_model(monkeypatch: pytest.MonkeyPatch, big: Path) -> None:
    (problem,) = plan(monkeypatch, big, free=2**20, dtype="bfloat16").problems

    assert "cpu needs" in problem
    assert "a smaller or quantised model: the weights take" in problem


def test_an_unknown_free_memory_is_said(monkeypatch: pytest.MonkeyPatch, big: Path) -> None:
    monkeypatch.setattr(plan_fit, "free_memory_of", lambda device: None)

    found = cells().vl.plan(model_name=str(big), progress=False)

    assert found.fits is None
    assert "unknown" in str(found)


def test_the_parameters_are_those_of_the_published_files(big: Path) -> None:
    from qwenvl_kit.checkpoints.activations import ModelShape
    from qwenvl_kit.checkpoints.checkpoint import read
    from qwenvl_kit.checkpoints.footprint import weight_bytes
    from qwenvl_kit.checkpoints.loading import load_config

    checkpoint = read(big)

    assert 2 * ModelShape.of(load_config(checkpoint)).n_parameters == weight_bytes(checkpoint, "bfloat16")
