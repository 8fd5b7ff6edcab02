"""``qwenvl-kit demo``: what a newcomer sees first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qwenvl_kit.cli import main


def test_the_demo_shows_captions_beside_the_truth_and_writes_a_gallery(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "gallery"

    assert main(["demo", "--pictures", "6", "--out", str(folder)]) == 0

    told = capsys.readouterr().out
    assert told.count("truth:") == 12
    assert "请给出这张图片的详细描述。" in told
    score = re.search(r"(\d+) of 6 captions", told)
    assert score is not None
    assert int(score.group(1)) >= 4, "a model that sees gets most of six scenes whole"

    page = (folder / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page, "the page needs nothing from elsewhere"
    assert page.count("alt=") == 6
