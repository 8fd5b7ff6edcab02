"""The same panel as a page of its own, in Voila."""

from __future__ import annotations

from pathlib import Path

from browser.conftest import SETUP
from browser.lab import voila, write_notebook
from playwright.sync_api import Page, expect


def test_a_panel_answers_in_voila(page: Page, tmp_path: Path) -> None:
    write_notebook(tmp_path / "panel.ipynb", SETUP, "ResizeCompare(df, heights=[112, 56], **SETTINGS)")
    with voila(tmp_path, "panel.ipynb") as server:
        page.goto(server.url)
        panel = page.locator(".qwenvl-panel")
        panel.get_by_role("button", name="Run", exact=True).click()

        expect(panel.locator("[role=status][aria-live]")).to_contain_text("Done: 8 of 8 answers")
        expect(panel).to_contain_text("一个大的青色心形")
        slider = page.get_by_role("slider", name="Divide")
        slider.press("ArrowRight")
        expect(slider).to_have_value("51")
        page.screenshot(path=tmp_path / "voila.png", full_page=True)
