"""What a run ends with: frames, and messages that anything may stand in."""

from __future__ import annotations

import pandas as pd
import pytest

from qwenvl_kit import RowErrors, RowErrorWarning
from qwenvl_kit.pipeline import Run
from qwenvl_kit.results import result_frame, return_or_raise
from qwenvl_kit.types import Result

FOUL = "\x1b[31mred\x07\nnext \u202e" + "x" * 5_000


def failed_run(n_rows: int) -> tuple[Run, pd.DataFrame]:
    run = Run([Result(row, "error", error=FOUL, stage="fetch") for row in range(n_rows)], {"asked": {}})
    return run, result_frame(run, pd.Index([f"{FOUL}{row}" for row in range(n_rows)]))


def is_clean(message: str) -> bool:
    return all(line.isprintable() and len(line) < 500 for line in message.split("\n"))


def test_warnings_of_failed_rows_hold_no_control_characters_and_are_bounded() -> None:
    run, frame = failed_run(8)
    with pytest.warns(RowErrorWarning, match="8 of 8 rows failed") as caught:
        return_or_raise(run, frame, frame, on_error="keep")
    assert is_clean(str(caught[0].message))


def test_errors_of_failed_rows_hold_no_control_characters_and_are_bounded() -> None:
    run, frame = failed_run(8)
    with pytest.raises(RowErrors, match="8 of 8 rows failed") as caught:
        return_or_raise(run, frame, frame, on_error="raise")
    assert is_clean(str(caught.value))
