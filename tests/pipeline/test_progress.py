"""The bar moves within a row that takes long."""

from __future__ import annotations

import re

import pytest

from qwenvl_kit.pipeline.progress import StageProgress, progress_bar


def test_the_bar_shows_layers_while_no_row_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    progress = StageProgress(lambda: now[0])
    with progress_bar(3, shown=True) as tick:
        for layer in (1, 12, 32):
            progress.report("encode", layer, 32)
            now[0] += 5.0
            tick(0, 0, progress.text())
        tick(1, 1, progress.text())

    shown = capsys.readouterr().err
    assert "image: layer 1/32" in shown
    assert "image: layer 12/32" in shown
    assert "32/32" not in shown, "it ends soon, and no one reports its end"
    assert "errors=1" in shown


@pytest.mark.parametrize(("rows", "named"), [([17], "row 17"), ([41, 17, 30], "row 17 and 2 more")])
def test_the_bar_names_the_rows_that_take_long(rows: list[int], named: str) -> None:
    now = [0.0]
    progress = StageProgress(lambda: now[0])
    for stage in ("load", "encode", "prefill"):
        progress.begin(rows)
        progress.report(stage, 1, 32)
        now[0] += 5.0

        text = progress.text()
        assert text == "loading 1/32" if stage == "load" else text.startswith(f"{named}, ")


def test_a_short_stage_does_not_flicker() -> None:
    now = [0.0]
    progress = StageProgress(lambda: now[0])
    for _ in range(3):
        progress.report("prefill", 1, 36)
        now[0] += 0.9
        assert progress.text() == ""


def test_the_time_left_follows_the_pace_of_rows_however_often_nothing_happened(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with progress_bar(60, shown=True) as tick:
        for tenths in range(41):  # four rows every two seconds, looked at ten times a second
            now[0] = tenths / 10
            tick(tenths // 20 * 4, 0, "")

        paces = re.findall(r"([\d.]+)row/s", capsys.readouterr().err)
    assert float(paces[-1]) == pytest.approx(2.0, rel=0.1)
