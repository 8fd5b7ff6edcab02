"""``qwenvl-kit store``: what a store holds, as a table, and without what is old."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qwenvl_kit.cli import main


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "captions.db"
    cells = pd.Series([np.full((40, 40, 3), level, dtype=np.uint8) for level in range(3)])
    for _ in range(2):
        cells.vl.caption(backend="echo", progress=False, store=path)
    return path


def test_show_counts_results_and_lists_runs(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "show", str(store)]) == 0

    told = capsys.readouterr().out
    assert "3 results" in told
    assert "2 runs" in told
    assert "3 ok, 3 of them cached" in told


def test_export_writes_every_result(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.csv"

    assert main(["store", "export", str(store), "--out", str(out)]) == 0

    table = pd.read_csv(out)
    assert len(table) == 3
    assert {"key", "text", "finish_reason", "stored_at"} <= set(table.columns)


def test_prune_forgets_what_is_older(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "prune", str(store), "--older-than-days", "1"]) == 0
    assert "0 results deleted, 3 kept" in capsys.readouterr().out

    assert main(["store", "prune", str(store), "--older-than-days", "0"]) == 0
    assert "3 results deleted, 0 kept" in capsys.readouterr().out


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "show", str(tmp_path / "none.db")]) == 2
    assert not (tmp_path / "none.db").exists()
    assert "No store" in capsys.readouterr().err
