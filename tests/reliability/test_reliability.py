"""Short versions of the scripts beside this file, and every kind of malformed cell by name."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.fake_backends import Script, ScriptedSpec, expected, gray, within
from helpers.malformed_inputs import Case, corpus
from helpers.malformed_inputs.scripts import script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qwenvl_kit
from qwenvl_kit import Config, Result, StoreError
from qwenvl_kit.executors.local import run_spec
from qwenvl_kit.store import SqliteStore, open_store

ECHO: dict[str, Any] = {"backend": "echo", "progress": False}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # row errors are what is looked at here, and Pillow warns of odd metadata
        yield


@pytest.mark.parametrize("case", corpus(), ids=lambda case: case.name)
def test_rubbish_ends_as_a_result_or_an_error_of_the_right_stage(case: Case) -> None:
    started = time.perf_counter()
    frame = pd.Series([gray(1), case.cell, gray(2)], dtype=object).vl.run(max_pixels=100_000, **ECHO)

    stage, status = frame["stage"].iloc[1], frame["status"].iloc[1]
    assert (stage if status == "error" else status) in case.outcomes
    assert frame["status"].iloc[[0, 2]].tolist() == ["ok", "ok"]
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("model", "n_kills", "rows"),
    [
        pytest.param("echo", 6, 200, marks=pytest.mark.slow),
        pytest.param("demo", 2, 24, marks=pytest.mark.model),
    ],
)
def test_a_run_killed_at_random_instants_resumes_without_loss(model: str, n_kills: int, rows: int) -> None:
    verdict = script("kill").kill_and_resume(n_kills, rows=rows, model=model, seed=2)

    assert verdict.n_midway >= 1 or model != "echo"
    assert verdict.is_good, verdict


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["--how", "limit"]], ids=["what there is", "limit"])
def test_disks_that_run_full_at_random_instants_lose_nothing(words: list[str]) -> None:
    """On small file systems where this process may mount them; a limit on the size of files stands in for them."""
    path = Path(__file__).parent / "full_disk.py"
    done = subprocess.run(
        [sys.executable, str(path), "--disks", "4", "--rows", "150", *words],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "| 4 full disks (" in done.stdout


def test_a_tenth_of_bad_rows_is_found_exactly() -> None:
    bad_rows = script("bad_rows")
    made, outcomes = bad_rows.cells(2000, with_bad=True)

    n_wrong, _ = bad_rows.check(made, outcomes)

    assert n_wrong == 0
    assert len(set(outcomes)) == 4


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**6), fails_after=st.integers(0, 30), breaks_after=st.integers(0, 30))
def test_whatever_fails_on_the_way_no_finished_work_is_done_again(
    tmp_path_factory: pytest.TempPathFactory, seed: int, fails_after: int, breaks_after: int
) -> None:
    """The store fails, then the backend breaks, then all is well: every answer is made once and is right."""
    path = tmp_path_factory.mktemp("faults") / "store.db"
    cells = [gray(level) for level in range(40)]
    answered: list[int] = []

    def attempt(script: Script, *, store_fails_after: int | None = None) -> list[Result]:
        spec = ScriptedSpec(Config(progress=False), script)
        with open_store(path) as store:
            faulty = FaultyStore(store, store_fails_after)
            done = within(30, lambda: run_spec(cells, ["What?"] * 40, spec.config, spec, spec.acquire, store=faulty))
            answered.extend(faulty.kept)
        return done.results

    attempt(Script(seed=seed), store_fails_after=fails_after)
    attempt(Script(seed=seed + 1, raises_after=breaks_after))
    results = attempt(Script(seed=seed + 2))

    assert [result.text for result in results] == [expected(level, "What?") for level in range(40)]
    assert len(answered) == len(set(answered)) == 40


class FaultyStore:
    """A store that fails once it has kept a number of results, and remembers what it kept."""

    def __init__(self, store: SqliteStore, fails_after: int | None) -> None:
        self._store, self._fails_after = store, fails_after
        self.kept: list[str] = []
        self.get, self.get_source, self.put_source = store.get, store.get_source, store.put_source

    def put(self, key: str, result: Result) -> None:
        if self._fails_after is not None and len(self.kept) >= self._fails_after:
            raise StoreError("database or disk is full")
        self._store.put(key, result)
        self.kept.append(key)


def test_html_is_escaped_wherever_it_is_made(tmp_path: Path) -> None:
    from qwenvl_kit.demo_gallery import Answer, Exhibit, Found, write

    script_text = "<script>alert(1)</script>\"' onerror=x"
    answer = Answer(script_text, script_text, f"{script_text} true")

    found = Found(script_text, script_text, f"{script_text} true", is_right=False)
    row = {"row": 0, "label": script_text, "score": 0.5, "text": script_text, "clipped": False}
    boxes = pd.DataFrame([{**row, "x0": 1.0, "y0": 1.0, "x1": 9.0, "y1": 9.0, "width": 28, "height": 28}])

    page = write([Exhibit(gray(1), answer, answer, found, boxes)], tmp_path).read_text(encoding="utf-8")

    assert "<script>" not in page
    assert 'onerror=x"' not in page.replace("&quot;", "")
    assert page.count("&lt;script&gt;") == 11


def test_the_last_run_is_there_after_every_kind_of_end() -> None:
    pd.Series([gray(1), b"rubbish"]).vl.caption(**ECHO)

    last = qwenvl_kit.last_run()
    assert last is not None
    assert last["status"].tolist() == ["ok", "error"]
