"""Results that outlive a run: a key goes in, the `Result` kept under it comes out.

One SQLite file in WAL mode; every result is committed before it is counted, so a killed process loses none that was
shown as done. It knows nothing of pictures or models: equal keys are equal answers.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwenvl_kit.errors import StoreError
from qwenvl_kit.records import Result

_APPLICATION_ID = 0x51564B31  # "QVK1": tells our files from other SQLite databases
_KEPT = ("text", "finish_reason", "prompt_tokens", "new_tokens", "height", "width")
_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION_ID};
CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, result TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (id INTEGER PRIMARY KEY, started TEXT NOT NULL, record TEXT NOT NULL);
"""


class SqliteStore:
    """A store in one SQLite file; threads and processes may share it.

    Parameters
    ----------
    path : str or Path
        The file; made where there is none.

    Raises
    ------
    StoreError
        The file is no store, is broken, or cannot be written; it is left as it is.

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
            self._connection = sqlite3.connect(self._path, timeout=30, check_same_thread=False, isolation_level=None)
        try:
            with self._told():
                self._prepare()
        except StoreError:
            self._connection.close()
            raise

    def get(self, key: str) -> Result | None:
        """Give the result kept under `key`; None where there is none. Its row number is 0."""
        with self._lock, self._told():
            found = self._connection.execute("SELECT result FROM results WHERE key = ?", (key,)).fetchone()
        return None if found is None else Result(0, "ok", **json.loads(found[0]))

    def put(self, key: str, result: Result) -> None:
        """Keep a result, committed when this returns; the first one under a key stays."""
        kept = {name: value for name, value in asdict(result).items() if name in _KEPT}
        text = json.dumps(kept, ensure_ascii=False)
        with self._lock, self._told():
            self._connection.execute("INSERT OR IGNORE INTO results VALUES (?, ?)", (key, text))

    def add_run(self, record: dict[str, Any]) -> None:
        """Keep what a run was asked and what ran."""
        text = json.dumps(record, ensure_ascii=False)
        with self._lock, self._told():
            self._connection.execute("INSERT INTO runs (started, record) VALUES (?, ?)", (record["started"], text))

    def runs(self) -> list[dict[str, Any]]:
        """Records of the runs that used this store, oldest first."""
        with self._lock, self._told():
            return [json.loads(row[0]) for row in self._connection.execute("SELECT record FROM runs ORDER BY id")]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _prepare(self) -> None:
        owner = self._connection.execute("PRAGMA application_id").fetchone()[0]
        has_tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if has_tables and owner != _APPLICATION_ID:
            raise StoreError(f"store={str(self._path)!r} is an SQLite file of something else; name another file")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(_SCHEMA)

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
