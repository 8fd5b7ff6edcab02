"""Check the tables of a store's SQLite file, and make those that are missing."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from qwenvl_kit import sqlite_errors
from qwenvl_kit.errors import StoreError

_T = TypeVar("_T")
APPLICATION_ID = 0x51564B31  # "QVK1": marks our files among SQLite databases
SCHEMA_VERSION = 1  # files from before it was written have 0, and the same tables
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS results "
    "(key TEXT PRIMARY KEY, result TEXT NOT NULL, stored_at REAL NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS sources "
    "(name TEXT PRIMARY KEY, mark TEXT NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS runs (id INTEGER PRIMARY KEY, started TEXT NOT NULL, record TEXT NOT NULL)",
)
_NAMING = (f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {SCHEMA_VERSION}")
_PROBES = (  # fail where a table of ours lacks a column
    "SELECT key, result, stored_at FROM results LIMIT 0",
    "SELECT name, mark, digest FROM sources LIMIT 0",
    "SELECT id, started, record FROM runs LIMIT 0",
)
# One statement is one read transaction: between two of them another process may begin the same file.
_OWNER = (
    "SELECT (SELECT count(*) FROM sqlite_master), application_id, user_version "
    "FROM pragma_application_id, pragma_user_version"
)
_CHECKED_BYTES = 2**29  # larger files are not read through at each opening


def prepare(connection: sqlite3.Connection, path: Path, shown: str) -> None:
    """Check a file that was opened to be written, make what is missing, and turn WAL mode on.

    Raises
    ------
    StoreError
        See `check_owner`.
    sqlite3.Error
        The file is broken, or cannot be written.
    """
    n_tables, owner, version = check_owner(connection, shown)
    if n_tables and path.stat().st_size <= _CHECKED_BYTES:
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"database disk image is malformed: {verdict}")
    is_named = owner == APPLICATION_ID and version == SCHEMA_VERSION
    _patiently(lambda: _make_missing(connection, shown, _SCHEMA if is_named else _SCHEMA + _NAMING))
    check_tables(connection)
    _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchall())
    connection.execute("PRAGMA synchronous = NORMAL")  # a commit survives the process; power loss costs the last few


def check_owner(connection: sqlite3.Connection, shown: str) -> tuple[int, int, int]:
    """Return the number of tables, the application's id and the schema's version of a file.

    Raises
    ------
    StoreError
        The file is another program's, or of a later version of this package.
    """
    n_tables, owner, version = connection.execute(_OWNER).fetchone()
    if owner != APPLICATION_ID and (n_tables or owner):
        raise StoreError(
            f"store={shown!r} is an SQLite file of another program and is left as it is. Name another file."
        )
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"store={shown!r} was written by a later version of qwenvl_kit (schema {version}; this one reads "
            f"{SCHEMA_VERSION}). Update qwenvl_kit, or name another file."
        )
    return n_tables, owner, version


def check_tables(connection: sqlite3.Connection) -> None:
    """Raise `sqlite3.Error` where a table of a store, or a column of one, is missing."""
    for statement in _PROBES:
        connection.execute(statement).fetchall()


def _make_missing(connection: sqlite3.Connection, shown: str, statements: tuple[str, ...]) -> None:
    """Make what is missing in one transaction, which also finds out whether the file can be written."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        check_owner(connection, shown)
        for statement in statements:
            connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _patiently(work: Callable[[], _T]) -> _T:
    """Try again while another process holds the file: SQLite's own time-out does not cover a change of journal mode."""
    deadline = time.monotonic() + sqlite_errors.PATIENCE_S
    while True:
        try:
            return work()
        except sqlite3.OperationalError as error:
            is_busy = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not is_busy or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.005, 0.05))


def is_broken(error: sqlite3.DatabaseError) -> bool:
    """Whether an error says that the file is damaged, or no SQLite file."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return "malformed" in str(error)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
