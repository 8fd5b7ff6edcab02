"""Measure the latency of a panel: the first answer, another cell during a run, and Cancel.

Run it by hand on a quiet machine with Chromium: ``python tests/benchmarks/panel_latency.py``. A real JupyterLab runs a
real panel on the embedded model; it prints the waits as a page sees them and gives exit status 1 when one is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from browser.conftest import SETUP
from browser.lab import FLAGS, TOKEN, chromium, lab, write_notebook
from playwright.sync_api import Page, sync_playwright

WANTED_S = {"first answer": 2.0, "another cell": 0.2, "cancel": 0.5}
PANEL = "panel = SamplingCompare(df, temperatures=[0.5, 1.0, 1.5], repeats=20, **SETTINGS)\npanel"

# The page watches itself: asking it from here would cost more than what is measured.
WATCH = """([act, done]) => new Promise(resolve => {
  const panel = document.querySelector('.qwenvl-panel'), cells = document.querySelectorAll('.jp-CodeCell');
  const press = name => [...panel.querySelectorAll('button')].find(one => one.textContent.trim() === name).click();
  const state = () => panel.querySelector('[role=status][aria-live]').textContent;
  const prompt = () => cells[2].querySelector('.jp-InputPrompt').textContent;
  const before = prompt();
  const started = performance.now();
  const checks = {
    answered: () => /Running.*[^0-9][1-9]\\d* of 240/.test(state()),
    calculated: () => prompt() !== before && /\\d/.test(prompt()),
    stopped: () => /Stopped|Done/.test(state()),
  };
  const acts = { run: () => press('Run'), cancel: () => press('Cancel'), cell: () => {
    window.jupyterapp.shell.currentWidget.content.activeCellIndex = 2;
    window.jupyterapp.commands.execute('notebook:run-cell');
  } };
  acts[act]();
  const look = () => checks[done]() ? resolve((performance.now() - started) / 1000) : setTimeout(look, 5);
  look();
})"""


def main() -> int:
    """Measure and print; return 1 for a missed target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    waits: dict[str, list[float]] = {name: [] for name in WANTED_S}
    with tempfile.TemporaryDirectory() as folder, lab(Path(folder)) as server, sync_playwright() as playwright:
        write_notebook(Path(folder) / "panel.ipynb", SETUP, PANEL, "6 * 7")
        server.start_kernel("panel.ipynb")
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 1600})
        page.goto(f"{server.url}/lab/tree/panel.ipynb?token={TOKEN}")
        page.wait_for_function("window.jupyterapp?.commands.hasCommand('notebook:run-all-cells')")
        page.wait_for_selector(".jp-CodeCell")
        server.wait_until_idle()
        page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_selector(".qwenvl-panel", timeout=120_000)
        page.wait_for_function("/\\d/.test(document.querySelectorAll('.jp-InputPrompt')[2].textContent)")
        for _ in range(asked.repeats):
            waits["first answer"].append(_watch(page, "run", "answered"))
            time.sleep(1)
            waits["another cell"].append(_watch(page, "cell", "calculated"))
            waits["cancel"].append(_watch(page, "cancel", "stopped"))
            time.sleep(1)
        browser.close()
    for name, seconds in waits.items():
        spread = f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
        print(f"{name}: {spread}, wanted: at most {WANTED_S[name]} s")
    return int(any(statistics.median(seconds) > WANTED_S[name] for name, seconds in waits.items()))


def _watch(page: Page, act: str, done: str) -> Any:
    return page.evaluate(WATCH, [act, done])


if __name__ == "__main__":
    raise SystemExit(main())
