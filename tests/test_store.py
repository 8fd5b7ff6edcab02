"""What is finished stays finished: results outlive the run, the process and the order of rows."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import qwenvl_kit
from qwenvl_kit import Result, StoreError
from qwenvl_kit.backends.echo import Echo
from qwenvl_kit.store import SqliteStore, open_store

ECHO = {"backend": "echo", "progress": False}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "captions.db"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that reach the backend."""
    rows: list[int] = []
    answer = Echo._answer

    def counted(self: Echo, request: object, *rest: object) -> Result:
        rows.append(request.row)  # type: ignore[attr-defined]
        return answer(self, request, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Echo, "_answer", counted)
    return rows


def pictures(n: int, first: int = 0) -> list[np.ndarray]:
    return [np.full((40, 40, 3), number, dtype=np.uint8) for number in range(first, first + n)]


def test_a_second_call_asks_only_what_is_missing(store: Path, asked: list[int]) -> None:
    pd.Series(pictures(5)).vl.caption(store=store, **ECHO)
    asked.clear()

    again = pd.Series(pictures(8)[::-1]).vl.run(store=store, **ECHO)

    assert len(asked) == 3
    assert again["cached"].tolist() == [False] * 3 + [True] * 5
    assert again["text"].tolist() == pd.Series(pictures(8)[::-1]).vl.caption(**ECHO).tolist()


def test_a_run_that_the_store_can_answer_loads_no_model(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pd.Series(pictures(3)).vl.caption(store=store, **ECHO)
    qwenvl_kit.unload()
    monkeypatch.setattr("qwenvl_kit.backends.echo.EchoSpec.load", lambda _: pytest.fail("loaded"))

    assert pd.Series(pictures(3)).vl.run(store=store, **ECHO)["cached"].all()


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "Else?"},
        {"system_prompt": "Be brief."},
        {"resized_height": 84},
        {"max_caption_length": 3},
        {"repetition_penalty": 1.2},
        {"num_beams": 2},
        {"max_pixels": 3136},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_answer_misses(store: Path, asked: list[int], change: dict[str, object]) -> None:
    pd.Series(pictures(2)).vl.caption(store=store, **ECHO)
    asked.clear()

    pd.Series(pictures(2)).vl.caption(store=store, **{**ECHO, **change})

    assert len(asked) == 2


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"on_error": "raise"}, {"timeout_s": 1.0}], ids=str)
def test_whatever_leaves_the_answer_alone_hits(store: Path, asked: list[int], change: dict[str, object]) -> None:
    pd.Series(pictures(2)).vl.caption(store=store, **ECHO)
    asked.clear()

    pd.Series(pictures(2)).vl.caption(store=store, **{**ECHO, **change})

    assert asked == []


def test_seeded_samples_are_kept_and_unseeded_ones_never(store: Path, asked: list[int]) -> None:
    for seed, expected in ((3, 2), (3, 0), (4, 2), (None, 2), (None, 2)):
        asked.clear()
        pd.Series(pictures(2)).vl.caption(store=store, do_sample=True, seed=seed, **ECHO)
        assert len(asked) == expected, seed


@pytest.mark.filterwarnings("ignore::qwenvl_kit.RowErrorWarning")
def test_errors_are_not_kept(store: Path, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "late.png"
    assert pd.Series([str(path)]).vl.run(store=store, **ECHO)["status"].tolist() == ["error"]

    Image.new("RGB", (30, 30)).save(path)

    assert pd.Series([str(path)]).vl.run(store=store, **ECHO)["status"].tolist() == ["ok"]


def test_every_run_leaves_its_record(store: Path) -> None:
    pd.Series(pictures(1)).vl.caption(store=store, **ECHO)
    pd.Series(pictures(1)).vl.caption(store=store, batch_size=2, **ECHO)

    with open_store(store) as opened:
        records = opened.runs()
    assert [record["effective"]["batch_size"] for record in records] == [4, 2]
    assert [record["cached"] for record in records] == [0, 1]


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as a header" * 40, None])
def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(store: Path, content: bytes | None) -> None:
    if content is None:
        connection = sqlite3.connect(store)
        connection.execute("CREATE TABLE mine (x)")
        connection.close()
    else:
        store.write_bytes(content)
    before = store.read_bytes()

    with pytest.raises(StoreError, match=r"captions\.db"):
        pd.Series(pictures(1)).vl.caption(store=store, **ECHO)

    assert store.read_bytes() == before


def test_a_store_that_cannot_be_written_stops_the_run_and_keeps_what_is_done(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = SqliteStore.put
    n_kept = 0

    def full_after_two(self: SqliteStore, key: str, result: Result) -> None:
        nonlocal n_kept
        if n_kept == 2:
            raise StoreError("database or disk is full")
        n_kept += 1
        put(self, key, result)

    monkeypatch.setattr(SqliteStore, "put", full_after_two)
    with pytest.raises(StoreError, match="full"):
        pd.Series(pictures(6)).vl.caption(store=store, batch_size=1, **ECHO)

    frame = qwenvl_kit.last_run()
    assert frame is not None
    assert (frame["status"] == "ok").sum() == 2


def test_threads_share_a_store(store: Path) -> None:
    with open_store(store) as opened:

        def write(first: int) -> None:
            for number in range(first, first + 50):
                opened.put(f"key{number}", Result(0, "ok", text=str(number)))

        threads = [threading.Thread(target=write, args=(first,)) for first in (0, 25, 50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

        assert [opened.get(f"key{number}").text for number in range(100)] == [str(n) for n in range(100)]


SLOW_RUN = """
import sys, time
import numpy as np, pandas as pd, qwenvl_kit
from qwenvl_kit.backends.echo import Echo
answer = Echo._answer
def slow(self, *rest):
    time.sleep(0.01)
    return answer(self, *rest)
Echo._answer = slow
counted = qwenvl_kit.Control(on_result=lambda result: print(result.row, flush=True))
cells = [np.full((40, 40, 3), n, dtype=np.uint8) for n in range(200)]
pd.Series(cells).vl.caption(backend="echo", progress=False, store=sys.argv[1], control=counted)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no kill -9")
def test_a_killed_process_loses_no_row_that_it_counted(store: Path, asked: list[int]) -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW_RUN, str(store)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    counted = [int(process.stdout.readline()) for _ in range(20)]
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    counted += [int(line) for line in process.stdout if line.endswith("\n")]
    process.stdout.close()
    process.wait(30)

    resumed = pd.Series(pictures(200)).vl.run(store=store, **ECHO)

    assert not set(asked) & set(counted)
    assert len(asked) < 200
    assert resumed["text"].tolist() == pd.Series(pictures(200)).vl.caption(**ECHO).tolist()
