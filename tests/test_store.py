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
from PIL import Image

import qwenvl_kit
from qwenvl_kit import Result, StoreError, StoreWarning
from qwenvl_kit.backends.echo import Echo
from qwenvl_kit.records import ImageSource, Picture
from qwenvl_kit.runner.recall import Recall
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


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sources that are read."""
    module = sys.modules["qwenvl_kit.images.load"]
    read: list[str] = []
    fetch = module.fetch

    def counted(source: ImageSource, *rest: object) -> object:
        read.append(source.key)
        return fetch(source, *rest)

    monkeypatch.setattr(module, "fetch", counted)
    return read


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


def test_a_database_of_something_else_is_refused_and_left_as_it_is(store: Path) -> None:
    connection = sqlite3.connect(store)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = store.read_bytes()

    with pytest.raises(StoreError, match=r"captions\.db.*something else"):
        pd.Series(pictures(1)).vl.caption(store=store, **ECHO)

    assert store.read_bytes() == before


@pytest.mark.parametrize("damage", ["rubbish", "torn page"])
def test_a_broken_store_is_moved_aside_and_said_never_overwritten(store: Path, damage: str) -> None:
    pd.Series(pictures(60)).vl.caption(store=store, **ECHO)
    whole = store.read_bytes()
    assert len(whole) > 3 * 4096
    broken = b"rubbish" * 3000 if damage == "rubbish" else whole[:4096] + b"\xff" * 4096 + whole[8192:]
    store.write_bytes(broken)

    with pytest.warns(StoreWarning, match=r"captions\.db\.broken-"):
        again = pd.Series(pictures(3)).vl.run(store=store, **ECHO)

    assert (again["status"] == "ok").all()
    (aside,) = (path for path in store.parent.glob("captions.db.broken-*") if not path.name.endswith(("-wal", "-shm")))
    assert aside.read_bytes() == broken
    assert pd.Series(pictures(3)).vl.run(store=store, **ECHO)["cached"].all()


def test_resuming_reads_no_file_again_unless_it_changed(store: Path, tmp_path: Path, reads: list[str]) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path, pixels in zip(paths, pictures(4), strict=True):
        Image.fromarray(pixels).save(path)
    cells = pd.Series([str(path) for path in paths])
    first = cells.vl.caption(store=store, **ECHO)
    reads.clear()

    assert cells.vl.run(store=store, **ECHO)["cached"].all()
    assert reads == []

    Image.fromarray(pictures(1, first=9)[0]).save(paths[2])
    os.utime(paths[2], ns=(1, 1))
    again = cells.vl.run(store=store, **ECHO)
    assert reads == [str(paths[2])]
    assert again["cached"].tolist() == [True, True, False, True]
    assert again["text"].iloc[2] != first.iloc[2]


def test_a_renamed_file_hits(store: Path, tmp_path: Path, asked: list[int]) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pictures(1)[0]).save(path)
    pd.Series([str(path)]).vl.caption(store=store, **ECHO)
    asked.clear()

    path = path.rename(tmp_path / "b.png")
    pd.Series([str(path)]).vl.caption(store=store, **ECHO)

    assert asked == []


def test_trusted_addresses_are_not_even_asked(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pictures(1)[0]).save(path)
    pd.Series([str(path)]).vl.caption(store=store, trust_sources=True, **ECHO)
    path.unlink()

    assert pd.Series([str(path)]).vl.run(store=store, trust_sources=True, **ECHO)["cached"].all()


def test_no_address_is_kept_in_clear(store: Path) -> None:
    with open_store(store) as opened:
        source = ImageSource("url", "u", "u", "http://me:hunter2@host/a.png?token=s3cr3t")
        picture = Picture(pictures(1)[0], "d", (40, 40), mark="etag:x")
        Recall(opened, lambda *_: True, trusts=False).remember(source, picture)
    kept = store.read_bytes()
    assert b"etag:x" in kept
    assert b"hunter2" not in kept
    assert b"host" not in kept


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


def test_two_processes_share_a_store(store: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SLOW_RUN, str(store)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.wait(120) == 0, process.communicate()[1][-2000:]
        process.communicate()

    again = pd.Series(pictures(200)).vl.run(store=store, **ECHO)
    assert again["cached"].all()
    assert again["text"].tolist() == pd.Series(pictures(200)).vl.caption(**ECHO).tolist()


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
