"""``df.vl.crop`` gives images for the next question: whole pixels, upright, and None with a reason."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers.fake_backends import gray
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_kit import ColumnNotFound, ConfigError, RowErrorWarning, UnknownOption

NUMBERED = np.arange(40 * 30, dtype=np.uint32).reshape(30, 40)
PIXELS = np.stack([NUMBERED >> 8, NUMBERED & 255, NUMBERED * 0], axis=-1).astype(np.uint8)
SIDE = st.floats(0, 1)


def boxes(*corners: tuple[float, ...], row: object = 0) -> pd.DataFrame:
    return pd.DataFrame(list(corners), columns=["x0", "y0", "x1", "y1"]).assign(row=row, label="cat")


@settings(max_examples=40)
@given(xs=st.tuples(SIDE, SIDE), ys=st.tuples(SIDE, SIDE))
def test_a_crop_has_every_pixel_that_its_box_touches_and_no_other(
    xs: tuple[float, float], ys: tuple[float, float]
) -> None:
    x0, x1 = sorted(39.5 * x for x in xs)
    y0, y1 = sorted(29.5 * y for y in ys)
    crop = np.asarray(pd.DataFrame({"image": [PIXELS]}).vl.crop("image", boxes((x0, y0, x1, y1)))[0])
    columns = [x for x in range(40) if x + 1 > x0 and x < x1] or [int(x0)]
    rows = [y for y in range(30) if y + 1 > y0 and y < y1] or [int(y0)]

    assert (crop == PIXELS[np.ix_(rows, columns)]).all()


def test_crops_stand_under_the_index_of_the_boxes_and_answer_the_next_question() -> None:
    df = pd.DataFrame({"image": [PIXELS, gray(3)]}, index=["a", "b"])
    found = boxes((0, 0, 4, 4), (2, 2, 8, 4)).assign(row=["b", "a"])
    found.index = pd.Index([10, 20])
    found["crop"] = df.vl.crop("image", found)

    assert [crop.size for crop in found["crop"]] == [(4, 4), (6, 2)]
    assert found.vl.ask("crop", "What number?", backend="echo", progress=False).notna().all()


def test_a_margin_is_a_share_of_the_box_and_stays_within_the_image() -> None:
    df = pd.DataFrame({"image": [PIXELS]})
    found = boxes((10, 10, 20, 15), (0, 0, 40, 30))

    assert [crop.size for crop in df.vl.crop("image", found, margin=0.2)] == [(14, 7), (40, 30)]


def test_what_cannot_be_cut_out_is_none_and_the_reason_is_said() -> None:
    df = pd.DataFrame({"image": [PIXELS, b"broken", None]}, index=["a", "b", "c"])
    found = boxes((0, 0, 4, 4), (0, 0, 4, 4), (0, 0, 4, 4), (0, 0, 4, 4), (90, 0, 95, 4))
    found = found.assign(row=["a", "b", "c", "d", "a"], width=40, height=30)

    with pytest.warns(RowErrorWarning, match="4 of 5 objects were not cut out. First failure: object 4: the box lies"):
        crops = df.vl.crop("image", found)
    assert crops.notna().tolist() == [True, False, False, False, False]
    with pytest.warns(RowErrorWarning, match="coordinates are of an image of 30×40 pixels, but this has 40×30"):
        df.vl.crop("image", found.head(1).assign(width=30, height=40))
    for row, reason in (("b", "decode"), ("c", "no image"), ("d", "not in the index")):
        with pytest.warns(RowErrorWarning, match=reason if row != "b" else "row 'b'"):
            df.vl.crop("image", found[found["row"] == row])


def test_mistakes_are_named_before_anything_is_read() -> None:
    df = pd.DataFrame({"image": [PIXELS]})
    with pytest.raises(ConfigError, match=r"boxes has points. Pass a frame of boxes"):
        df.vl.crop("image", pd.DataFrame({"row": [0], "label": "cat", "x": 1, "y": 1}))
    with pytest.raises(ConfigError, match="margin=-1 is invalid"):
        df.vl.crop("image", boxes((0, 0, 1, 1)), margin=-1)
    with pytest.raises(ConfigError, match="the index has labels twice"):
        pd.concat([df, df]).vl.crop("image", boxes((0, 0, 1, 1)))
    with pytest.raises(ColumnNotFound):
        df.vl.crop("photo", boxes((0, 0, 1, 1)))
    with pytest.raises(UnknownOption, match=r"crop\(\) has no option 'model_name'"):
        df.vl.crop("image", boxes((0, 0, 1, 1)), model_name="demo")
