"""Results that outlive a run: a key goes in, the `Result` kept under it comes out.

One SQLite file in WAL mode; every result is committed before it is counted, so a killed process loses none that was
shown as done. It knows nothing of pictures or models: equal keys are equal answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwenvl_kit.errors import StoreError, StoreWarning
from qwenvl_kit.records import Result

_APPLICATION_ID = 0x51564B31  # "QVK1": tells our files from other SQLite databases
_CHECKED_BYTES = 2**29  # larger files are not read through at each opening
_KEPT = ("text", "finish_reason", "prompt_tokens", "new_tokens", "height", "width", "flag")
_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION_ID};
CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, result TEXT NOT NULL, stored_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sources (name TEXT PRIMARY KEY, mark TEXT NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (id INTEGER PRIMARY KEY, started TEXT NOT NULL, record TEXT NOT NULL);
"""


class SqliteStore:
    """A store in one SQLite file; threads and processes may share it.

    Parameters
    ----------
    path : str or Path
        The file; made where there is none. A broken one is moved aside, with a warning, and a new one begun.

    Raises
    ------
    StoreError
        The file is a database of something else, or cannot be read or written.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, open_store(f"{folder}/captions.db") as store:
    ...     store.put("key", Result(0, "ok", text="a cat"))
    ...     store.get("key").text
    'a cat'
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        with self._told():
            try:
                self._connection = _open(self._path)
            except sqlite3.DatabaseError as error:
                if not _is_broken(error):
                    raise
                _move_aside(self._path, error)
                self._connection = _open(self._path)

    def get(self, key: str) -> Result | None:
        """Give the result kept under `key`; None where there is none. Its row number is 0."""
        with self._lock, self._told():
            found = self._connection.execute("SELECT result FROM results WHERE key = ?", (key,)).fetchone()
        return None if found is None else Result(0, "ok", **json.loads(found[0]))

    def put(self, key: str, result: Result) -> None:
        """Keep a result, committed when this returns; the first one under a key stays."""
        kept = {name: value for name, value in asdict(result).items() if name in _KEPT}
        self._write("INSERT OR IGNORE INTO results VALUES (?, ?, ?)", key, _json(kept), time.time())

    def get_source(self, name: str) -> tuple[str, str] | None:
        """Mark and digest of the picture that stood at an address when it was read last."""
        with self._lock, self._told():
            found = self._connection.execute("SELECT mark, digest FROM sources WHERE name = ?", (name,)).fetchone()
        return None if found is None else (found[0], found[1])

    def put_source(self, name: str, mark: str, digest: str) -> None:
        """Keep which picture stood at an address."""
        self._write("INSERT OR REPLACE INTO sources VALUES (?, ?, ?)", name, mark, digest)

    def add_run(self, record: dict[str, Any]) -> None:
        """Keep what a run was asked and what ran."""
        self._write("INSERT INTO runs (started, record) VALUES (?, ?)", record["started"], _json(record))

    def runs(self) -> list[dict[str, Any]]:
        """Records of the runs that used this store, oldest first."""
        with self._lock, self._told():
            return [json.loads(row[0]) for row in self._connection.execute("SELECT record FROM runs ORDER BY id")]

    def results(self) -> Iterator[dict[str, Any]]:
        """Every result that is kept, with its key and the time it was stored at, in seconds since 1970."""
        with self._lock, self._told():
            for key, result, stored_at in self._connection.execute("SELECT * FROM results ORDER BY stored_at"):
                yield {"key": key, **json.loads(result), "stored_at": stored_at}

    def counts(self) -> dict[str, int]:
        """How many results, sources and runs are kept."""
        with self._lock, self._told():
            return {
                table: self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("results", "sources", "runs")
            }

    def prune(self, before: float) -> int:
        """Forget results stored before a time, in seconds since 1970, give their space back and say how many."""
        with self._lock, self._told():
            n_pruned = self._connection.execute("DELETE FROM results WHERE stored_at < ?", (before,)).rowcount
            self._connection.execute("VACUUM")
        return n_pruned

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _write(self, statement: str, *values: object) -> None:
        with self._lock, self._told():
            self._connection.execute(statement, values)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"store={str(self._path)!r} cannot be used: {error}; it is left as it is: free the disk, or move "
                "the file aside and pass store= again"
            ) from error


@contextlib.contextmanager
def open_store(path: str | Path) -> Iterator[SqliteStore]:
    """Open a store for the time of a run."""
    store = SqliteStore(path)
    try:
        yield store
    finally:
        store.close()


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
    try:
        _prepare(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    n_tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if n_tables and owner != _APPLICATION_ID:
        raise StoreError(f"store={str(path)!r} is an SQLite file of something else; name another file")
    if path.stat().st_size <= _CHECKED_BYTES:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"database disk image is malformed: {verdict}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")  # a commit survives the process; power loss costs the last few
    connection.executescript(_SCHEMA)


def _is_broken(error: sqlite3.DatabaseError) -> bool:
    return "malformed" in str(error) or "not a database" in str(error)


def _move_aside(path: Path, error: sqlite3.DatabaseError) -> None:
    """Keep what is broken under another name: some of it may yet be saved."""
    stamp = time.strftime("%Y%m%dT%H%M%S")
    aside = path.with_name(f"{path.name}.broken-{stamp}-{os.getpid()}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    warnings.warn(
        f"store={str(path)!r} is broken ({error}); it was moved to {aside.name} and a new one is begun",
        StoreWarning,
        stacklevel=2,
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
