"""``qwenvl-kit demo``: what a newcomer sees first."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwenvl_kit.cli import main


def test_the_demo_shows_captions_and_a_found_box_beside_the_truth_and_draws_both_in_a_gallery(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gallery"

    assert main(["demo", "--images", "6", "--out", str(folder)]) == 0

    told = capsys.readouterr().out
    assert told.count("truth:") == 18
    assert "请给出这张图片的详细描述。" in told
    score = re.search(r"(\d+) of 6 captions", told)
    assert score is not None
    assert int(score.group(1)) >= 4, "a model that sees gets most of six scenes whole"

    placed = re.search(r"Boxes of (\d+) of 6 names are right", told)
    assert placed is not None
    assert int(placed.group(1)) >= 4
    boxes = re.findall(r"answer: ((?:\d+,\d+ to \d+,\d+(?:; )?)+), IoU 0\.\d\d", told)
    assert len(boxes) >= 4

    page = (folder / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page, "the page needs nothing from elsewhere"
    assert page.count("alt=") == 6
    n_drawn = len(re.findall(r'<span class="qwenvl-mark', page))
    assert n_drawn == sum(found.count(" to ") for found in boxes)


def test_the_demo_runs_where_the_output_lacks_its_characters_and_its_reader_goes_away(tmp_path: Path) -> None:
    code = "import sys; from qwenvl_kit.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, "demo", "--images", "2", "--out", str(tmp_path / "gallery")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert b"?" in process.stdout.readline()
    process.stdout.close()

    assert process.wait(120) == 0
    assert (tmp_path / "gallery" / "index.html").is_file()


def test_a_gallery_that_cannot_be_made_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("qwenvl_kit.demo_gallery.exhibits", lambda *_, **__: pytest.fail("worked"))

    assert main(["demo", "--out", str(tmp_path / "file" / "gallery")]) == 2
    assert "Cannot create the folder" in capsys.readouterr().err
