"""``df.vl.show(boxes=…)`` draws every object where it is, for every reader, without a script."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from helpers.fake_backends import gray
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qwenvl_kit import ConfigError
from qwenvl_kit.boxes.drawing import COLOURS, MAX_MARKS, style_classes

EXIF_ORIENTATION = 0x0112
MARK = re.compile(
    r'class="(qwenvl-mark[^"]*)" style="left:([\d.]+)%;top:([\d.]+)%;z-index:(\d+)'
    r'(?:;width:([\d.]+)%;height:([\d.]+)%)?"'
)


def boxes(rows: list[tuple[object, ...]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["row", "label", "x0", "y0", "x1", "y1", "score"])


def turned(upright: np.ndarray, orientation: int) -> bytes:
    """A JPEG that stores an upright image turned, with the EXIF tag that turns it back."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose
    image = Image.fromarray(upright)
    if orientation in undo:
        image = image.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=95, subsampling=0, exif=exif)
    return encoded.getvalue()


def thumbnail(page: str) -> np.ndarray:
    uri = re.search(r"data:image/jpeg;base64,([\w+/=]+)", page)
    assert uri is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri[1]))))


def red_square(width: int = 400, height: int = 300) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[30:90, 240:360] = (255, 0, 0)
    return pixels, (240, 30, 360, 90)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_and_its_crop_are_where_the_object_is_in_the_upright_image(orientation: int) -> None:
    pixels, box = red_square()
    df = pd.DataFrame({"image": [turned(pixels, orientation)]})
    found = boxes([(0, "red square", *box, 0.9)]).assign(width=400, height=300)
    page = df.vl.show(boxes=found).html
    small = thumbnail(page)
    mark = MARK.search(page)
    assert mark is not None
    left, top, width, height = (float(mark[at]) / 100 for at in (2, 3, 5, 6))
    rows = slice(round(top * len(small)) + 2, round((top + height) * len(small)) - 2)
    columns = slice(round(left * small.shape[1]) + 2, round((left + width) * small.shape[1]) - 2)

    assert small[rows, columns, 0].min() > 200
    assert (small[..., 0] > 128).sum() == pytest.approx(width * height * small[..., 0].size, rel=0.1)
    assert np.asarray(df.vl.crop("image", found)[0])[..., 0].min() > 200


@settings(max_examples=25)
@given(
    corners=st.tuples(st.floats(0, 900), st.floats(0, 900), st.floats(0, 900), st.floats(0, 900)),
    size=st.sampled_from([(1000, 1000), (901, 3000), (3000, 901)]),
)
def test_a_place_is_that_share_of_the_image(corners: tuple[float, ...], size: tuple[int, int]) -> None:
    (x0, x1), (y0, y1) = sorted(corners[::2]), sorted(corners[1::2])
    df = pd.DataFrame({"image": [np.zeros((size[1] // 100, size[0] // 100, 3), np.uint8)]})
    scaled = boxes([(0, "cat", x0 / 100, y0 / 100, x1 / 100, y1 / 100, 1.0)])
    mark = MARK.search(df.vl.show(boxes=scaled).html)
    assert mark is not None
    width, height = size[0] // 100, size[1] // 100
    expected = [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]

    assert [float(mark[at]) for at in (2, 3, 5, 6)] == pytest.approx([min(one, 100) for one in expected], abs=0.011)


def test_every_object_can_be_reached_by_keyboard_and_is_read_aloud() -> None:
    df = pd.DataFrame({"image": [gray(9)]})
    page = df.vl.show(boxes=boxes([(0, "cat", 1, 2, 3, 4, 0.93), (0, "dog", 0, 0, 9, 9, np.nan)])).html

    assert 'tabindex="0" role="img" aria-label="1: cat, 0.93, from 1, 2 to 3, 4 pixels"' in page
    assert 'aria-label="2: dog, from 0, 0 to 9, 9 pixels"' in page
    assert 'role="group" aria-label="2 objects"' in page
    assert page.count('tabindex="0"') == 2


def test_labels_are_escaped_and_no_script_is_needed() -> None:
    evil = "\"><script>alert('x')</script><img src=x onerror=alert(1)>"
    df = pd.DataFrame({"image": [gray(1)]})
    found = boxes([(0, evil, 0, 0, 1, 1, 0.5)])
    found.attrs["rows"] = pd.DataFrame({"status": "error", "error": evil}, index=[0])
    page = df.vl.show(boxes={evil: found, "b": found}).html

    assert "<script" not in page
    assert "<img src=x" not in page
    assert page.count("&lt;script&gt;") >= 6


def test_a_label_has_one_colour_on_all_images_and_in_the_legend() -> None:
    df = pd.DataFrame({"image": [gray(1), gray(2)]})
    labels = [f"label {at}" for at in range(30)]
    found = boxes([(at % 2, label, 0, 0, 1, 1, 1.0) for at, label in enumerate([*labels, *labels])])
    page = df.vl.show(boxes=found).html
    listed = re.findall(r'qwenvl-swatch (qwenvl-c\d qwenvl-l\d)"></span>(?:\d+ )?(label \d+)', page)
    styles = {label: {style for style, name in listed if name == label} for label in labels}

    assert all(styles[label] == {style_classes(at)} for at, label in enumerate(labels))
    assert len({style_classes(at) for at in range(21)}) == 21
    assert "label 7 (2)" in page


def test_the_legend_counts_the_objects_that_are_shown() -> None:
    df = pd.DataFrame({"image": [gray(1), gray(2)]})
    found = boxes([(0, "cat", 0, 0, 1, 1, 1.0), (1, "dog", 0, 0, 1, 1, 1.0), (5, "bird", 0, 0, 1, 1, 1.0)])
    page = df.vl.show(boxes=found, n_rows=1).html

    assert "cat (1)" in page
    assert "dog" not in page
    assert "bird" not in page


def luminance(colour: tuple[int, ...]) -> float:
    shares = [value / 255 for value in colour]
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@given(pixel=st.tuples(*[st.integers(0, 255)] * 3))
def test_the_white_or_the_black_line_is_seen_on_any_image_and_beside_any_colour(pixel: tuple[int, ...]) -> None:
    white, black = (255, 255, 255), (0, 0, 0)
    for behind in (pixel, *(tuple(bytes.fromhex(colour[1:])) for colour in COLOURS)):
        assert max(contrast(white, behind), contrast(black, behind)) >= 4.5  # of WCAG; it asks lines for 3


def test_points_are_drawn_as_dots_without_a_size() -> None:
    df = pd.DataFrame({"image": [gray(9)]}, index=["a"])
    points = pd.DataFrame({"row": ["a"], "label": ["cat"], "x": [4.5], "y": [9.0], "score": [0.5]})
    page = df.vl.show(boxes=points).html

    assert "left:" in page
    assert MARK.findall(page)[0][4:] == ("", "")
    assert "at 4, 9 pixels" in page


def test_small_objects_lie_above_large_ones_that_hold_them() -> None:
    df = pd.DataFrame({"image": [gray(9)]})
    page = df.vl.show(boxes=boxes([(0, "nose", 4, 4, 5, 5, 1), (0, "cat", 0, 0, 9, 9, 1)])).html

    assert [int(mark[3]) for mark in MARK.findall(page)] == [2, 1]


def test_coordinates_of_another_size_are_not_drawn_and_that_is_said() -> None:
    pixels, box = red_square()
    df = pd.DataFrame({"image": [pixels]})
    found = boxes([(0, "red square", *box, 0.9)]).assign(width=300, height=400)
    page = df.vl.show(boxes=found).html

    assert MARK.search(page) is None
    assert "coordinates are of an image of 300×400 pixels, but this has 400×300" in page
    assert "red square" in page


def test_an_image_that_failed_is_told_apart_from_one_without_objects() -> None:
    df = pd.DataFrame({"image": [gray(1), gray(2), b"broken"]}, index=["a", "b", "c"])
    found = boxes([])
    found.attrs["rows"] = pd.DataFrame(
        {"status": ["ok", "error", "error"], "error": [None, "out of memory", "decode"], "n_unread": [3, 0, 0]},
        index=["a", "b", "c"],
    )
    page = df.vl.show(boxes=found).html

    assert page.count("0 objects") == 2
    assert "unread: 3" in page
    assert page.count(">no objects<") == 1
    assert "error: out of memory" in page
    assert page.count("<img") == 2


def test_thousands_of_objects_stay_bounded_and_are_counted() -> None:
    df = pd.DataFrame({"image": [gray(9)]})
    page = df.vl.show(boxes=boxes([(0, "cat", 0, 0, 1, 1, 0.5)] * 5000)).html

    assert len(MARK.findall(page)) == MAX_MARKS
    assert f"and {5000 - MAX_MARKS} more" in page
    assert "5000 objects" in page
    assert len(page) < 60_000


def test_frames_beside_each_other_show_the_overlap_of_each_object_and_what_was_missed() -> None:
    df = pd.DataFrame({"image": [np.zeros((50, 50, 3), np.uint8)]}, index=["a"])
    truth = boxes([("a", "cat", 0, 0, 20, 20, np.nan), ("a", "dog", 30, 30, 40, 40, np.nan)])
    found = boxes([("a", "bird", 0, 0, 5, 5, 0.4), ("a", "cat", 0, 0, 20, 10, 0.8)])
    points = pd.DataFrame({"row": ["a", "a"], "label": ["dog", "cat"], "x": [35, 49], "y": [35, 49]})
    page = df.vl.show(boxes={"truth": truth, "found": found, "points": points}).html

    assert page.count("<img") == 3
    assert "<b>found</b> · 1 of 2 found, 1 extra, mean IoU 0.25" in page
    assert "<b>points</b> · 1 of 2 found, 1 extra" in page
    assert "0.80, IoU 0.50 with 1" in page
    assert "0.40, no match" in page
    assert "missed: 2 dog" in page
    assert "in no box" in page
    assert page.count("missed: ") == 2


def test_a_sheet_with_boxes_stays_within_its_bytes() -> None:
    noise = [np.random.default_rng(seed).integers(0, 255, (300, 300, 3), dtype=np.uint8) for seed in range(9)]
    df = pd.DataFrame({"image": noise})
    shown = df.vl.show(boxes=boxes([(row, "cat", 0, 0, 9, 9, 1.0) for row in range(9)]), max_bytes=120_000)

    assert 0 < shown.n_shown < 9
    assert len(shown.html.encode()) < 128_000


def test_boxes_of_another_frame_and_equal_labels_are_refused() -> None:
    df = pd.DataFrame({"image": [gray(1)]})
    found = boxes([(7, "cat", 0, 0, 1, 1, 1.0)])
    with pytest.raises(ConfigError, match="No object of boxes belongs to a row of this frame: 7 is not in its index"):
        df.vl.show(boxes=found)
    with pytest.raises(ConfigError, match="the index has labels twice"):
        pd.concat([df, df]).vl.show(boxes=found.assign(row=0))
    with pytest.raises(ConfigError, match="boxes is empty"):
        df.vl.show(boxes={})
    with pytest.raises(ConfigError, match=r"boxes\['found'\] needs the columns row, label"):
        df.vl.show(boxes={"found": df})
