"""What is finished stays finished: results outlive the run, the process and the order of rows."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.fake_backends import within
from PIL import Image

import qwenvl_kit
from qwenvl_kit import ConfigError, Result, StoreError, StoreWarning
from qwenvl_kit.cli import main
from qwenvl_kit.inference.echo import Echo
from qwenvl_kit.pipeline.source_index import SourceIndex
from qwenvl_kit.store import SqliteStore, open_store
from qwenvl_kit.types import ImageSource, LoadedImage

ECHO = {"backend": "echo", "progress": False}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "captions.db"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that the backend answers."""
    rows: list[int] = []
    generate = Echo.generate

    def counted(self: Echo, *asked: Any) -> Iterator[Result]:
        for result in generate(self, *asked):
            rows.append(result.row)
            yield result

    monkeypatch.setattr(Echo, "generate", counted)
    return rows


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sources that are read."""
    module = sys.modules["qwenvl_kit.images.load"]
    read: list[str] = []
    begin = module.ImageLoader.start_fetch

    def counted(loader: object, source: ImageSource) -> object:
        read.append(source.key)
        return begin(loader, source)

    monkeypatch.setattr(module.ImageLoader, "start_fetch", counted)
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
    monkeypatch.setattr("qwenvl_kit.inference.echo.EchoSpec.load", lambda *_: pytest.fail("loaded"))

    assert pd.Series(pictures(3)).vl.run(store=store, **ECHO)["cached"].all()


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "Else?"},
        {"system_prompt": "Be brief."},
        {"start_with": "A photo of"},
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

    with pytest.raises(StoreError, match=r"captions\.db.*another program"):
        pd.Series(pictures(1)).vl.caption(store=store, **ECHO)

    assert store.read_bytes() == before


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_a_broken_store_is_moved_aside_and_said_never_overwritten(store: Path, mode: int) -> None:
    pd.Series(pictures(60)).vl.caption(store=store, **ECHO)
    whole = store.read_bytes()
    assert len(whole) > 3 * 4096
    broken = whole[:4096] + b"\xff" * 4096 + whole[8192:]
    store.write_bytes(broken)
    store.chmod(mode)

    with pytest.warns(StoreWarning, match=r"captions\.db\.broken-"):
        again = pd.Series(pictures(3)).vl.run(store=store, **ECHO)

    assert (again["status"] == "ok").all()
    (aside,) = (path for path in store.parent.glob("captions.db.broken-*") if not path.name.endswith(("-wal", "-shm")))
    assert aside.read_bytes() == broken
    assert pd.Series(pictures(3)).vl.run(store=store, **ECHO)["cached"].all()
    assert stat.S_IMODE(store.stat().st_mode) == mode, "who shared the old one shares the new one"


FOREIGN = {
    "notes.txt": b"precious\n" * 50,
    "table.parquet": b"PAR1" + bytes(5000),
    "id_rsa": b"-----BEGIN OPENSSH PRIVATE KEY-----\n" * 40,
    "short": b"x",
    "other.sqlite": b"SQLite format 3\0" + b"\xff" * 5000,  # broken, and not ours
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    file.write_bytes(FOREIGN[name])

    with pytest.raises(StoreError, match=f"{name}.*left as it is"):
        pd.Series(pictures(1)).vl.run(store=file, **ECHO)
    for words in (["show", str(file)], ["prune", str(file), "--older-than-days", "0"]):
        assert main(["store", *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert file.read_bytes() == FOREIGN[name]


@pytest.mark.parametrize("switch_s", [0.005, 1e-5], ids=["usual", "often"])
def test_two_that_find_a_store_broken_begin_one_new_store(
    switch_s: float, store: Path, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(functools.partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(switch_s)
    pd.Series(pictures(60)).vl.caption(store=store, **ECHO)
    whole = store.read_bytes()
    store.write_bytes(whole[:4096] + b"\xff" * 4096 + whole[8192:])
    opened: list[SqliteStore] = []

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoreWarning)
        threads = [threading.Thread(target=lambda: opened.append(SqliteStore(store))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

    assert len(opened) == 6
    opened[0].put("key", Result(0, "ok", text="a cat"))
    assert all(other.get("key") is not None for other in opened)
    for one in opened:
        one.close()
    assert (
        len([path for path in store.parent.glob("captions.db.broken-*") if path.name[-4:] not in ("-wal", "-shm")]) == 1
    )


BIRTH = """
import sys
from qwenvl_kit.types import Result
from qwenvl_kit.store import open_store
print("ready", flush=True)
for number, path in enumerate(sys.stdin):
    with open_store(path.rstrip()) as store:
        store.put(f"{sys.argv[1]} {number}", Result(0, "ok", text="a cat"))
    print("done", flush=True)
"""


@pytest.mark.slow
def test_eight_processes_that_begin_a_store_together_are_all_served(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", BIRTH, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for number in range(8)
        ]
        for process in processes:
            assert process.stdout.readline() == "ready\n"  # type: ignore[union-attr]
        for number in range(20):
            for process in processes:
                process.stdin.write(f"{tmp_path / str(number)}.db\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
            for process in processes:
                assert process.stdout.readline() == "done\n"  # type: ignore[union-attr]
            with open_store(tmp_path / f"{number}.db") as opened:
                assert opened.counts()["results"] == 8


def test_a_store_that_another_process_begins_in_between_is_no_other_file(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process comes in before every statement of an opening, in turn; on a file system without locks."""
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    connect = sqlite3.connect
    at, path, n_executed = 0, store, 1

    class Slow(sqlite3.Connection):
        def execute(self, statement: str, *rest: object) -> sqlite3.Cursor:
            nonlocal n_executed
            n_executed += 1
            if n_executed == at and not self.in_transaction:
                with monkeypatch.context() as other:
                    other.setattr(sqlite3, "connect", connect)
                    with open_store(path):
                        pass
            return super().execute(statement, *rest)

    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Slow))
    while n_executed >= at:
        at, path, n_executed = at + 1, store.with_name(f"{at}.db"), 0
        with open_store(path) as opened:
            assert opened.counts() == {"results": 0, "sources": 0, "runs": 0}
    assert 5 < at < 40


@pytest.mark.parametrize("name", ["", "  ", ":memory:", "a\0b.db"])
def test_a_name_that_is_none_of_a_file_is_a_wrong_option(name: str) -> None:
    with pytest.raises(ConfigError, match="does not name a file"):
        pd.Series(pictures(1)).vl.run(store=name, **ECHO)


def test_what_stands_where_the_store_should_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    told = {
        "results/captions.db": f"the folder {tmp_path / 'results'} does not exist. Make the folder first",
        "file/captions.db": f"the folder {tmp_path / 'file'} is not a folder",
        ".": "it is a folder",
        "pipe": "it is not a regular file",
        "n" * 300: "File name too long",
    }
    for name, words in told.items():
        with pytest.raises(StoreError, match=re.escape(words)):
            pd.Series(pictures(1)).vl.run(store=tmp_path / name, **ECHO)


def test_the_home_folder_is_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    pd.Series(pictures(1)).vl.run(store="~/captions.db", **ECHO)

    assert (tmp_path / "captions.db").is_file()


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (sqlite3.SQLITE_FULL, "Free some space"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, "read-only"),
        (sqlite3.SQLITE_CANTOPEN, "permissions"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, "Another process"),
        (sqlite3.SQLITE_IOERR_LOCK, "local disk"),
        (sqlite3.SQLITE_IOERR_WRITE, "Check the disk"),
        (sqlite3.SQLITE_CORRUPT, "moves it aside"),
        (sqlite3.SQLITE_NOTADB, "no SQLite file"),
        (sqlite3.SQLITE_ERROR, "Name another file"),
    ],
)
def test_each_kind_of_fault_has_an_advice_of_its_own(
    store: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    with open_store(store) as opened:
        monkeypatch.setattr(opened, "_connection", Failing(code))
        with pytest.raises(StoreError, match=advice) as told:
            opened.get("key")
        monkeypatch.undo()
    assert str(told.value).count("Free some space") == (code == sqlite3.SQLITE_FULL)


class Failing:
    """A connection of which every statement fails."""

    def __init__(self, code: int) -> None:
        self._code = code

    def execute(self, *_: object) -> None:
        error = sqlite3.OperationalError("it failed")
        error.sqlite_errorcode = self._code
        raise error


def test_a_store_of_a_later_version_is_refused_and_left_as_it_is(store: Path) -> None:
    pd.Series(pictures(1)).vl.run(store=store, **ECHO)
    with sqlite3.connect(store) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    before = store.read_bytes()

    with pytest.raises(StoreError, match=r"later version of qwenvl_kit \(schema 7; this one reads 1\)"):
        pd.Series(pictures(1)).vl.run(store=store, **ECHO)

    assert store.read_bytes() == before


def test_a_store_from_before_versions_were_written_is_used(store: Path) -> None:
    pd.Series(pictures(2)).vl.run(store=store, **ECHO)
    with sqlite3.connect(store) as connection:
        connection.execute("PRAGMA user_version = 0")
    connection.close()

    assert pd.Series(pictures(2)).vl.run(store=store, **ECHO)["cached"].all()


ODD_RESULTS = [
    "{",
    "[]",
    "null",
    "[" * 100_000,
    b"\xff\xfe",
    b"",
    7,
    "{}",
    '{"text": null}',
    '{"text": 3}',
    '{"text": "a", "later_field": 1}',
    '{"text": "a", "row": 5}',
    '{"text": "a", "height": "tall"}',
    '{"text": "a", "width": 1e400}',
    '{"text": "a", "new_tokens": true}',
    '{"text": "a", "prompt_tokens": 99999999999999999999}',
    '{"text": "half \\udce9"}',
    '{"text": "a", "finish_reason": ["stop"]}',
    '{"text": "a", "flag": 1}',
]


@pytest.mark.parametrize("odd", ODD_RESULTS, ids=lambda odd: str(odd)[:24])
def test_a_row_that_cannot_be_read_is_asked_anew_and_replaced(
    store: Path, asked: list[int], odd: object, capsys: pytest.CaptureFixture[str]
) -> None:
    first = pd.Series(pictures(3)).vl.run(store=store, **ECHO)
    with sqlite3.connect(store) as connection:
        (key,) = connection.execute("SELECT key FROM results LIMIT 1").fetchone()
        connection.execute("UPDATE results SET result = ? WHERE key = ?", (odd, key))
    connection.close()
    with open_store(store) as opened, pytest.warns(StoreWarning, match="1 rows that cannot be read"):
        assert len(list(opened.results())) == 2
    asked.clear()

    again = pd.Series(pictures(3)).vl.run(store=store, **ECHO)

    assert len(asked) == 1
    assert again["text"].tolist() == first["text"].tolist()
    assert pd.Series(pictures(3)).vl.run(store=store, **ECHO)["cached"].all()
    assert main(["store", "show", str(store)]) == 0


@pytest.mark.parametrize("values", [(b"\xff", "d"), ("m", b"\xff\xff"), (7, 8), ("", "")], ids=str)
def test_an_address_that_cannot_be_read_is_looked_at_again(
    store: Path, tmp_path: Path, values: tuple[object, object]
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(pictures(1)[0]).save(path)
    first = pd.Series([str(path)]).vl.run(store=store, **ECHO)
    with sqlite3.connect(store) as connection:
        assert connection.execute("UPDATE sources SET mark = ?, digest = ?", values).rowcount == 1
    connection.close()

    again = pd.Series([str(path)]).vl.run(store=store, **ECHO)

    assert again["text"].tolist() == first["text"].tolist()


@pytest.mark.parametrize("record", ["{", "[]", "{}", b"\xff", '{"effective": 3, "rows": []}'], ids=str)
def test_a_record_that_cannot_be_read_is_passed_over(
    store: Path, record: object, capsys: pytest.CaptureFixture[str]
) -> None:
    pd.Series(pictures(1)).vl.run(store=store, **ECHO)
    with sqlite3.connect(store) as connection:
        connection.execute("INSERT INTO runs (started, record) VALUES ('now', ?)", (record,))
    connection.close()

    assert main(["store", "show", str(store)]) == 0
    assert "1 ok" in capsys.readouterr().out


def test_counts_can_be_asked_while_results_are_read(store: Path) -> None:
    with open_store(store) as opened:
        for number in range(600):
            opened.put(str(number), Result(0, "ok", text="a cat"))

        def read() -> None:
            for n_read, _ in enumerate(opened.results(), start=1):
                if n_read in (1, 599):
                    assert opened.counts()["results"] == 600
                    opened.put("0", Result(0, "ok", text="a dog"))

        within(30, read)


@pytest.mark.parametrize("may_write", [True, False], ids=["writable", "read-only"])
@pytest.mark.parametrize("left", ["nothing", "-wal"])
def test_looking_into_a_store_writes_nothing(
    store: Path, tmp_path: Path, left: str, may_write: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(store) as opened:
        opened.put("key", Result(0, "ok", text="a cat"))
        copy = store.with_name("copy.db")
        if left == "-wal":  # as of a process that was killed
            for part in ("", "-wal"):
                shutil.copyfile(f"{store}{part}", f"{copy}{part}")
    if left == "nothing":
        shutil.copyfile(store, copy)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("copy.db*")}
    monkeypatch.setattr(os, "access", lambda *_: may_write)

    with open_store(copy, access="read") as looked:
        assert looked.get("key") == Result(0, "ok", text="a cat")
        with pytest.raises(StoreError, match="read-only"):
            looked.put("other", Result(0, "ok", text="a dog"))

    after = {path.name: path.read_bytes() for path in tmp_path.glob("copy.db*") if not path.name.endswith("-shm")}
    assert after == before
    assert may_write or not (tmp_path / "copy.db-shm").exists()


def test_a_store_is_for_its_owner_only(store: Path) -> None:
    before = os.umask(0o022)
    try:
        with open_store(store) as opened:
            opened.put("key", Result(0, "ok", text="a cat"))
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in store.parent.glob("captions.db*")}
    finally:
        os.umask(before)

    assert modes == dict.fromkeys(("captions.db", "captions.db-wal", "captions.db-shm"), 0o600)


def test_a_closed_store_says_so(store: Path) -> None:
    with open_store(store) as opened:
        pass

    for use in (opened.counts, opened.runs, lambda: opened.get("key"), lambda: next(opened.results())):
        with pytest.raises(StoreError, match="closed"):
            use()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_may_not_use_the_store_that_its_parent_has_open(store: Path) -> None:
    code = """
import os, sqlite3, sys, threading, time
from qwenvl_kit import Result, StoreError
from qwenvl_kit.store import open_store
with open_store(sys.argv[1]) as store:
    other = sqlite3.connect(sys.argv[1], isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writer = threading.Thread(target=store.put, args=("key", Result(0, "ok", text="a cat")))
    writer.start()  # it waits for the other connection, and meanwhile holds the store's lock
    time.sleep(0.3)
    child = os.fork()
    if child == 0:
        told = 0
        for use in (store.counts, lambda: store.get("key"), lambda: open_store(sys.argv[1]).__enter__()):
            try:
                use()
            except StoreError as error:
                told += "forked" in str(error)
        store.close()
        sys.exit(told)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    other.execute("ROLLBACK")
    writer.join()
    assert store.counts()["results"] == 1
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(store)], timeout=60, check=False)
    assert done.returncode == 3


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
        picture = LoadedImage(pictures(1)[0], "d", (40, 40), version="etag:x")
        SourceIndex(opened, lambda *_: True, trusts=False).remember(source, picture)
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
import sys
import numpy as np, pandas as pd, qwenvl_kit
counted = qwenvl_kit.Control(on_result=lambda result: print(result.row, flush=True))
cells = [np.full((40, 40, 3), n, dtype=np.uint8) for n in range(200)]
echo = {"backend": "echo", "model_name": "echo-10ms", "batch_size": 1}
pd.Series(cells).vl.caption(progress=False, store=sys.argv[1], control=counted, **echo)
"""


@pytest.mark.slow
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
