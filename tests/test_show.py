"""``df.vl.show``: thumbnails, bounded, and nobody's script runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from faults import gray

from qwenvl_kit import ColumnNotFound


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (900, 700, 3), dtype=np.uint8)


def test_the_column_of_pictures_is_found_and_the_others_are_written_below() -> None:
    df = pd.DataFrame({"note": ["first", "second"], "photo": [None, gray(3)]})
    shown = df.vl.show()

    assert shown.html.count("<img") == 1
    assert "no picture" in shown.html
    assert "second" in shown.html
    assert (shown.n_shown, shown.n_rows) == (2, 2)


def test_captions_labels_and_names_are_escaped_also_in_the_alternative_text() -> None:
    evil = "\"><script>alert('x')</script>"
    df = pd.DataFrame({"image": [gray(1), evil], evil: [evil, evil]}, index=[evil, "b"])

    page = df.vl.show("image").html

    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5
    assert 'alt="row &quot;&gt;' in page


def test_rows_and_bytes_are_bounded_and_the_page_says_so() -> None:
    df = pd.DataFrame({"image": [noise(seed) for seed in range(30)]})

    by_rows, by_bytes = df.vl.show(n_rows=5), df.vl.show(max_bytes=60_000)

    assert "5 of 30 rows are shown" in by_rows.html
    assert 0 < by_bytes.n_shown < 24
    assert len(by_bytes.html.encode()) < 62_000
    assert "the limit of 60000 bytes was reached" in by_bytes.html


def test_a_broken_picture_says_why_beside_the_others() -> None:
    page = pd.DataFrame({"image": [b"not a picture", gray(1), "nowhere.png"]}).vl.show("image").html

    assert page.count("<img") == 1
    assert "decode: " in page
    assert "fetch: " in page


def test_a_frame_without_pictures_says_how_to_name_the_column() -> None:
    with pytest.raises(ColumnNotFound, match=r"name it: df.vl.show\('column'\); the frame has: 'text'"):
        pd.DataFrame({"text": ["word"]}).vl.show()
