"""Keep results beyond a run: each is stored under the key of its answer.

One SQLite file in WAL mode; every result is committed before it is counted, so a killed process loses none that was
shown as done. Equal keys are equal answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from qwenvl_kit import sqlite_errors, sqlite_file
from qwenvl_kit._warnings import warn
from qwenvl_kit.errors import StoreError, StoreWarning
from qwenvl_kit.types import Result

Access = Literal["write", "existing", "read"]
_COUNTS = ("prompt_tokens", "new_tokens", "height", "width", "source_height", "source_width")
_KEPT = ("text", "finish_reason", *_COUNTS, "flag")
_LISTS = {  # kept only where there are some
    "label_logprobs": float,
    "label_tokens": int,
    "token_logprobs": float,
    "token_texts": str,
    "alternative_logprobs": float,
    "alternative_texts": str,
}
_FINISHES = (None, "stop", "length", "repetition")
_PAGE = 256  # rows that are fetched at once while others may use the store
_OPENERS = {
    "write": sqlite_file.open_to_write,
    "existing": sqlite_file.open_existing,
    "read": sqlite_file.open_to_read,
}


class SqliteStore:
    """A store in one SQLite file; threads and processes may share it.

    Parameters
    ----------
    path : str or Path
        The file; ``~`` is the home folder. It is made where there is none, readable by its owner only. A broken store
        is moved aside, with a warning, and a new one begun.
    access : {"write", "existing", "read"}
        ``existing`` makes no file and moves none; ``read`` also writes nothing.

    Raises
    ------
    StoreError
        The file is no store, one of a later version, or cannot be read or written.
    ConfigError
        The name is none of a file.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, open_store(f"{folder}/captions.db") as store:
    ...     store.put("key", Result(0, "ok", text="a cat"))
    ...     store.get("key").text
    'a cat'
    """

    def __init__(self, path: str | Path, *, access: Access = "write") -> None:
        self._shown = os.fspath(path)
        self._path = sqlite_file.locate(path)
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._odd: set[str] = set()  # keys whose rows cannot be read
        if self._path in _inherited:
            raise StoreError(_forked(self._shown))
        with self._store_errors():
            self._connection = _OPENERS[access](self._path, self._shown)
        _open_stores.add(self)

    def get(self, key: str) -> Result | None:
        """Return the result kept under `key`, as row 0; None where there is none that can be read."""
        with self._connected() as connection:
            found = connection.execute("SELECT CAST(result AS BLOB) FROM results WHERE key = ?", (key,)).fetchone()
        if found is None:
            return None
        values = _values(found[0])
        if values is None or not _is_result(values):
            self._odd.add(key)
            return None
        lists = {name: tuple(values[name]) for name in _LISTS if name in values}
        return Result(0, "ok", **{**values, **lists})

    def put(self, key: str, result: Result) -> None:
        """Keep a result, committed when this returns; the first one under a key stays, unless it cannot be read."""
        kept = {
            name: value
            for name, value in asdict(result).items()
            if name in _KEPT or (name in _LISTS and value is not None)
        }
        rule = "REPLACE" if key in self._odd else "IGNORE"
        self._write(
            f"INSERT OR {rule} INTO results (key, result, stored_at) VALUES (?, ?, ?)", key, _json(kept), time.time()
        )
        self._odd.discard(key)

    def get_source(self, name: str) -> tuple[str, str] | None:
        """Return version and digest of the image that an address held when it was last read."""
        with self._connected() as connection:
            found = connection.execute(
                "SELECT CAST(mark AS BLOB), CAST(digest AS BLOB) FROM sources WHERE name = ?", (name,)
            ).fetchone()
        try:
            return None if found is None else (found[0].decode(), found[1].decode())
        except (UnicodeDecodeError, AttributeError):  # no text: the address is read again
            return None

    def put_source(self, name: str, version: str, digest: str) -> None:
        """Keep which image an address held."""
        whole = version.encode("utf-8", "backslashreplace").decode()
        self._write("INSERT OR REPLACE INTO sources (name, mark, digest) VALUES (?, ?, ?)", name, whole, digest)

    def add_run(self, record: dict[str, Any]) -> None:
        """Keep the record of a run."""
        self._write("INSERT INTO runs (started, record) VALUES (?, ?)", record["started"], _json(record))

    def runs(self) -> list[dict[str, Any]]:
        """Return the records of the runs that used this store, oldest first, without those that cannot be read."""
        with self._connected() as connection:
            rows = connection.execute("SELECT CAST(record AS BLOB) FROM runs ORDER BY id").fetchall()
        return [record for row in rows if (record := _values(row[0])) is not None]

    def results(self) -> Iterator[dict[str, Any]]:
        """Yield every result, with its key and the time it was stored at, in seconds since 1970.

        Rows that cannot be read are left out, with a warning in the end.
        """
        n_odd = 0
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT CAST(key AS BLOB), CAST(result AS BLOB), stored_at FROM results ORDER BY stored_at, key"
            )
        try:
            while True:
                with self._connected():
                    page = rows.fetchmany(_PAGE)
                if not page:
                    break
                for key, result, stored_at in page:
                    values = _values(result)
                    if values is None or not _is_result(values):
                        n_odd += 1
                        continue
                    yield {"key": key.decode(errors="replace"), **values, "stored_at": stored_at}
        finally:
            with contextlib.suppress(sqlite3.Error):
                rows.close()
        if n_odd:
            warn(f"store={self._shown!r} has {n_odd} rows that cannot be read; they are left out.", StoreWarning)

    def counts(self) -> dict[str, int]:
        """Return how many results, sources and runs are kept."""
        with self._connected() as connection:
            return {
                table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("results", "sources", "runs")
            }

    def prune(self, before: float) -> int:
        """Delete results stored before a time, in seconds since 1970, give their space back and return how many."""
        with self._connected() as connection:
            n_pruned = connection.execute("DELETE FROM results WHERE stored_at < ?", (before,)).rowcount
            connection.execute("VACUUM")
        return n_pruned

    def close(self) -> None:
        """Close the file; nothing of it may be used in a forked child, where this does nothing."""
        if os.getpid() == self._process:
            with self._lock, self._store_errors():
                self._connection.close()
            _open_stores.discard(self)

    def _write(self, statement: str, *values: object) -> None:
        with self._connected() as connection:
            connection.execute(statement, values)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        if os.getpid() != self._process:  # the parent's thread may hold the lock for ever
            raise StoreError(_forked(self._shown))
        with self._lock, self._store_errors():
            yield self._connection

    @contextlib.contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        # Also what sqlite3 raises where SQLite is out of memory, or a value does not fit or is no text.
        except (sqlite3.Error, sqlite3.Warning, OSError, MemoryError, OverflowError, UnicodeError) as error:
            what = sqlite_errors.explain(error, self._path)
            raise StoreError(f"store={self._shown!r} cannot be used: {what}") from error


@contextlib.contextmanager
def open_store(path: str | Path, *, access: Access = "write") -> Iterator[SqliteStore]:
    """Open a store for the time of a run; see `SqliteStore`."""
    store = SqliteStore(path, access=access)
    try:
        yield store
    finally:
        store.close()


_open_stores: weakref.WeakSet[SqliteStore] = weakref.WeakSet()
_inherited: dict[Path, list[sqlite3.Connection]] = {}


def _after_fork() -> None:
    """Never use or close in a child what the parent opened: SQLite would take the parent's locks for the child's."""
    # https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_
    for store in list(_open_stores):
        _inherited.setdefault(store._path, []).append(store._connection)
    sqlite_file.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _forked(shown: str) -> str:
    return (
        f"store={shown!r} was open when this process was forked, and SQLite allows no use of it here. Start workers "
        "with multiprocessing's 'spawn' or 'forkserver', or before the run."
    )


def _values(packed: object) -> dict[str, Any] | None:
    """Return a JSON object; None for anything else, which other programs may have written."""
    try:
        values = json.loads(packed) if isinstance(packed, bytes) else None
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _is_result(values: dict[str, Any]) -> bool:
    """Whether these are the fields of a result, of types that a frame can hold."""
    return (
        values.keys() <= {*_KEPT, *_LISTS}
        and _is_text(values.get("text"))
        and (values.get("flag") is None or _is_text(values["flag"]))
        and values.get("finish_reason") in _FINISHES
        and all(_is_count(values.get(name)) for name in _COUNTS)
        and all(_is_list(values[name], kind) for name, kind in _LISTS.items() if name in values)
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value == value.encode("utf-8", "replace").decode()


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63)


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(type(one) is kind for one in value)


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if _is_text(text) else json.dumps(value)  # unpaired surrogates as escapes
