"""SQLite fails at every call in turn: runs end with their results, and nothing that was counted is lost."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.fake_backends import within

from qwenvl_kit import Control, Result, StoreError, StoreWarning, frame_run, sqlite_errors
from qwenvl_kit.store import open_store

N_BEFORE, N_ROWS = 2, 4


class Faults:
    """SQLite's calls: those from one number on fail, or that one alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: type[Exception], code: int | None) -> None:
        self._error, self._code = error, code
        self._at: int | None = None
        self._lasts = False
        self.n_calls = 0
        connect, faults = sqlite3.connect, self

        class Connection(sqlite3.Connection):
            def execute(self, *words: object) -> sqlite3.Cursor:
                faults.call()
                return super().execute(*words)

        def faulty(*words: object, **options: object) -> sqlite3.Connection:
            faults.call()
            return connect(*words, **options, factory=Connection)  # type: ignore[call-overload]

        monkeypatch.setattr(sqlite3, "connect", faulty)

    def set(self, at: int | None, *, lasts: bool = False) -> None:
        """Let calls fail from the number `at` on, counted from here; None for no more faults."""
        self._at, self._lasts, self.n_calls = at, lasts, 0

    def call(self) -> None:
        self.n_calls += 1
        if self._at is not None and (self.n_calls == self._at or (self._lasts and self.n_calls > self._at)):
            error = self._error("injected")
            if self._code is not None:
                error.sqlite_errorcode = self._code  # type: ignore[attr-defined]
            raise error


KINDS = {
    "full": (sqlite3.OperationalError, sqlite3.SQLITE_FULL),
    "io": (sqlite3.OperationalError, sqlite3.SQLITE_IOERR_WRITE),
    "busy": (sqlite3.OperationalError, sqlite3.SQLITE_BUSY),
    "corrupt": (sqlite3.DatabaseError, sqlite3.SQLITE_CORRUPT),
    "misuse": (sqlite3.ProgrammingError, None),
    "interface": (sqlite3.InterfaceError, None),
    "memory": (MemoryError, None),
    "overflow": (OverflowError, None),
}


@pytest.fixture(params=KINDS)
def faults(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    monkeypatch.setattr(sqlite_errors, "PATIENCE_S", 0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoreWarning)
        yield Faults(monkeypatch, *KINDS[request.param])


@pytest.mark.slow
@pytest.mark.parametrize("lasts", [False, True], ids=["once", "ever since"])
def test_a_fault_at_any_call_loses_nothing_that_was_counted(
    tmp_path: Path, faults: Faults, lasts: bool, request: pytest.FixtureRequest
) -> None:
    if "corrupt" in request.node.callspec.id:
        lasts = False  # a file that stays broken is moved aside, which has tests of its own
    cells = pd.Series([np.full((28, 28, 3), number, dtype=np.uint8) for number in range(N_ROWS)])
    template = tmp_path / "template.db"
    ask(cells[:N_BEFORE], template, [])
    outcomes = set[str]()
    for at in range(1, 200):
        store = tmp_path / f"{at}.db"
        store.write_bytes(template.read_bytes())
        before = frame_run.last_run()
        counted: list[Result] = []

        faults.set(at, lasts=lasts)
        outcomes.add(outcome := ask(cells, store, counted))
        fired = faults.n_calls >= at
        faults.set(None)

        frame = None if frame_run.last_run() is before else frame_run.last_run()
        assert outcome == "returned" or counted == [] or frame is not None
        if frame is not None:
            assert {result.row for result in counted if result.status == "ok"} == set(
                np.flatnonzero(frame["status"] == "ok")
            )
        again = cells.vl.run(backend="echo", progress=False, store=store)
        assert (again["status"] == "ok").all()
        assert again["cached"][:N_BEFORE].all(), f"call {at}: rows from before are lost"
        assert all(again["cached"].iloc[result.row] for result in counted if result.status == "ok"), f"call {at}"
        if not fired:
            break
    else:
        pytest.fail("a run never gets by without a fault")
    assert outcomes == {"returned", "StoreError"}
    assert at > 15


def ask(cells: pd.Series, store: Path, counted: list[Result]) -> str:
    """Run, in bounded time, and give how it ended."""
    control = Control(on_result=counted.append)
    try:
        within(60, lambda: cells.vl.run(backend="echo", progress=False, store=store, control=control))
    except StoreError:
        return "StoreError"
    return "returned"


def test_a_fault_at_any_call_of_the_other_doors_is_a_store_error(tmp_path: Path, faults: Faults) -> None:
    path = tmp_path / "a.db"
    with open_store(path) as opened:
        opened.put("key", Result(0, "ok", text="a cat"))
        opened.add_run({"started": "now"})
    for at in range(1, 100):
        faults.set(at)
        try:
            with open_store(path, access="read") as opened:
                assert len(list(opened.results())) == 1
                assert opened.counts()["runs"] == len(opened.runs()) == 1
            with open_store(path, access="existing") as opened:
                assert opened.prune(0) == 0
        except StoreError:
            pass
        if faults.n_calls < at:
            break
    faults.set(None)
    assert 10 < at < 99
    with open_store(path, access="read") as opened:
        assert opened.get("key") is not None
