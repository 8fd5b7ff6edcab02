"""A browser without scripts darkens what a word does not come from, in a saved page, by keyboard and by pointer."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.explained import explanation
from PIL import Image
from playwright.sync_api import Browser, Page, expect


@pytest.fixture
def still(browser: Browser) -> Iterator[Page]:
    """A page that runs no script."""
    context = browser.new_context(java_script_enabled=False)
    yield context.new_page()
    context.close()


def brightness(page: Page, picture: int = 0) -> np.ndarray:
    """Return the mean grey of each cell (2, 3) of a picture of the stage."""
    box = page.locator(".qwenvl-stage").first.locator("img").nth(picture).bounding_box()
    assert box is not None
    shot = page.screenshot(clip=box)
    return np.asarray(Image.open(io.BytesIO(shot)).convert("L").resize((3, 2), Image.Resampling.BOX)).astype(int)


def test_a_word_lights_up_its_cell_by_tab_and_by_pointer_and_only_then(still: Page, tmp_path: Path) -> None:
    file = tmp_path / "shown.html"
    file.write_text(f"<!doctype html><meta charset='utf-8'><body>{explanation(n_pictures=2).show().html}", "utf-8")
    still.goto(file.as_uri())
    assert brightness(still).min() > 120, "nothing is dark before a word is chosen"

    still.keyboard.press("Tab")
    still.keyboard.press("Tab")
    for _ in range(2):
        cells = brightness(still)
        assert cells[0, 1] > 120, "the word red comes from the second cell"
        assert np.delete(cells.ravel(), 1).max() < 60
        assert brightness(still, 1).max() < 60, "and from no place of the second picture"
        still.keyboard.press("Tab")
        still.locator(".qwenvl-word").nth(1).hover()
        still.locator(".qwenvl-word").nth(2).blur()

    said = still.get_by_label("red: strongest at row 1 of 2, column 2 of 3 of image 1")
    expect(said).to_have_count(1)
    expect(still.locator(".qwenvl-small")).to_have_count(3)
