"""A browser without scripts shows every box where it is, in a saved page, at any width, light or dark."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

import qwenvl_kit  # noqa: F401  # registers df.vl

BOX = (240, 30, 360, 90)
FOUND = pd.DataFrame([(0, "red <b>square</b>", *BOX, 0.93)], columns=["row", "label", "x0", "y0", "x1", "y1", "score"])


def pixels() -> np.ndarray:
    image = np.full((300, 400, 3), 40, np.uint8)
    image[BOX[1] : BOX[3], BOX[0] : BOX[2]] = (255, 0, 0)
    return image


@pytest.fixture(params=["light", "dark"])
def still(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page that runs no script."""
    context = browser.new_context(java_script_enabled=False, color_scheme=request.param)
    yield context.new_page()
    context.close()


def open_saved(page: Page, folder: Path, html: str, width: int) -> None:
    file = folder / "sheet.html"
    scheme = "<meta name='color-scheme' content='light dark'>"
    file.write_text(f"<!doctype html><meta charset='utf-8'>{scheme}<body>{html}", encoding="utf-8")
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(file.as_uri())


@pytest.mark.parametrize("width", [1200, 260])
def test_a_mark_frames_its_object(still: Page, tmp_path: Path, width: int) -> None:
    df = pd.DataFrame({"image": [pixels()]})
    open_saved(still, tmp_path, df.vl.show("image", boxes=FOUND).html, width)
    image, mark = (still.locator(name).bounding_box() for name in (".qwenvl-image img", ".qwenvl-mark"))
    assert image is not None
    assert mark is not None
    scale = image["width"] / 400

    assert image["height"] / 300 == pytest.approx(scale, rel=0.02)
    assert mark["x"] - image["x"] == pytest.approx(BOX[0] * scale, abs=1)
    assert mark["y"] - image["y"] == pytest.approx(BOX[1] * scale, abs=1)
    assert (mark["width"], mark["height"]) == pytest.approx((120 * scale, 60 * scale), abs=1)
    shown = np.asarray(Image.open(io.BytesIO(still.locator(".qwenvl-mark").screenshot())).convert("RGB")).astype(int)
    middle = shown[len(shown) // 2, shown.shape[1] // 2]
    assert middle[0] > 230
    assert middle[1:].max() < 25


def test_tab_reaches_an_object_and_shows_its_label(still: Page, tmp_path: Path) -> None:
    df = pd.DataFrame({"image": [pixels()]})
    open_saved(still, tmp_path, df.vl.show("image", boxes={"truth": FOUND, "found": FOUND}).html, 800)
    label = still.locator(".qwenvl-mark i").nth(1)
    assert not label.is_visible()
    still.keyboard.press("Tab")
    still.keyboard.press("Tab")

    assert label.is_visible()
    assert label.inner_text().strip() == "red <b>square</b>"
    found = still.get_by_role("img", name="1: red <b>square</b>, 0.93, IoU 1.00 with 1, from 240, 30 to 360, 90 pixels")
    assert found.count() == 1
    assert still.get_by_role("group", name="1 object").count() == 2


def test_text_is_readable_on_both_backgrounds(still: Page, tmp_path: Path) -> None:
    df = pd.DataFrame({"image": [pixels()], "caption": "A square."})
    open_saved(still, tmp_path, df.vl.show("image", boxes=FOUND).html, 800)
    shown = np.asarray(Image.open(io.BytesIO(still.locator(".qwenvl-objects").screenshot())).convert("L")).astype(int)

    assert shown.max() - shown.min() > 120


CELL = """import numpy as np
image = np.full((300, 400, 3), 40, np.uint8)
image[30:90, 240:360] = (255, 0, 0)
found = pd.DataFrame([(0, "red square", 240, 30, 360, 90, 0.93)], columns=[*"rl", "x0", "y0", "x1", "y1", "score"])
found = found.rename(columns={"r": "row", "l": "label"})
pd.DataFrame({"image": [image]}).vl.show("image", boxes={"truth": found.drop(columns="score"), "found": found})"""


def test_a_notebook_shows_the_same(notebook: Callable[..., Page], tmp_path: Path) -> None:
    page = notebook(CELL)
    views = page.locator(".qwenvl-view")
    expect(views).to_have_count(2)
    for at in range(2):
        image, mark = (views.nth(at).locator(name).bounding_box() for name in (".qwenvl-image img", ".qwenvl-mark"))
        assert image is not None
        assert mark is not None
        scale = image["width"] / 400
        assert mark["x"] - image["x"] == pytest.approx(240 * scale, abs=1)
        assert mark["y"] - image["y"] == pytest.approx(30 * scale, abs=1)
        assert (mark["width"], mark["height"]) == pytest.approx((120 * scale, 60 * scale), abs=1)
    expect(views.nth(1)).to_contain_text("1 red square 0.93, IoU 1.00 with 1")
    page.screenshot(path=tmp_path / "lab.png")
