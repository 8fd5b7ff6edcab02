"""The bar tells how far a run is, and only where it is wanted."""

from __future__ import annotations

import pytest

from qwenvl_kit.runner.progress import progress_bar


def test_the_bar_shows_rows_done_and_rows_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(8, shown=True) as tick:
        tick(2, 0)
        tick(8, 3)

    shown = capsys.readouterr().err
    assert "8/8" in shown
    assert "errors=3" in shown
    assert "picture" in shown


@pytest.mark.parametrize(("n_rows", "shown"), [(8, False), (0, True)], ids=["not wanted", "no rows"])
def test_nothing_is_drawn_where_there_is_nothing_to_show(
    capsys: pytest.CaptureFixture[str], n_rows: int, shown: bool
) -> None:
    with progress_bar(n_rows, shown=shown) as tick:
        tick(n_rows, 0)

    assert capsys.readouterr() == ("", "")


def test_a_tick_may_repeat_a_count() -> None:
    with progress_bar(3, shown=True) as tick:
        for done in (1, 1, 3, 3):
            tick(done, 0)
