"""A browser and a JupyterLab for the tests in this folder; without a browser they skip, unless that is forbidden."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator

import pytest
from browser.lab import FLAGS, TOKEN, Server, chromium, lab, write_notebook
from playwright.sync_api import Browser, Page, expect, sync_playwright

REQUIRED = "QWENVL_KIT_BROWSER"
PATIENCE_MS = 120_000  # two busy cores may stand still for a while

SETUP = """import pandas as pd

from qwenvl_kit.demo import WORLD, draw, sample_scenes
from qwenvl_kit.widgets import *

df = pd.DataFrame({"image": [draw(scene) for scene in sample_scenes(4, seed=3, world=WORLD)]}, index=list("abcd"))
SETTINGS = dict(model_name="demo", dtype="float32", use_flash_attention_2=False, min_pixels=784, max_pixels=10**6)
_ = df.vl.caption("image", progress=False, **SETTINGS)  # warm"""

Open = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    where = chromium()
    if where is None:
        if os.environ.get(REQUIRED) == "required":
            pytest.fail("no Chromium here: apt-get install --no-install-recommends chromium fonts-noto-cjk")
        pytest.skip("no Chromium on this machine: apt-get install chromium fonts-noto-cjk")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=where, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One JupyterLab for all tests."""
    del browser  # no server where there is nothing to look at it
    with lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own; whatever a script of it throws fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 1600})
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    thrown: list[str] = []
    opened.on("pageerror", lambda error: thrown.append(str(error)))
    yield opened
    context.close()
    assert [error for error in thrown if "qwenvl" in error.lower() or "anywidget" in error.lower()] == []


@pytest.fixture
def notebook(server: Server, page: Page) -> Iterator[Open]:
    """Opens a notebook made of the cells given, all of them run."""

    def opened(*cells: str, name: str = "panel.ipynb") -> Page:
        write_notebook(server.folder / name, SETUP, *cells)
        server.start_kernel(name)
        # A workspace of its own: else the page opens what the test before had open, with a kernel of its own.
        page.goto(f"{server.url}/lab/workspaces/{uuid.uuid4().hex}/tree/{name}?token={TOKEN}")
        page.wait_for_selector(".jp-Notebook .jp-Cell")
        page.wait_for_function("window.jupyterapp?.commands.hasCommand('notebook:run-all-cells')")
        server.wait_until_idle()
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        n_cells = len(cells) + 1
        page.wait_for_function(
            "n => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].filter("
            "prompt => /\\[\\d+\\]/.test(prompt.textContent)).length === n",
            arg=n_cells,
        )
        return page

    yield opened
    server.stop_kernels()
