"""Explain errors of SQLite and of the system about a store's file: one remedy for each kind."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

PATIENCE_S = 30.0  # how long another process may hold the file
_LITTLE_SPACE = 2**16  # below this many free bytes, a disk is full
_LOCKING = frozenset(  # what fails where a file system has no locks or no shared memory
    {
        sqlite3.SQLITE_IOERR_LOCK,
        sqlite3.SQLITE_IOERR_RDLOCK,
        sqlite3.SQLITE_IOERR_UNLOCK,
        sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK,
        sqlite3.SQLITE_IOERR_SHMOPEN,
        sqlite3.SQLITE_IOERR_SHMLOCK,
        sqlite3.SQLITE_IOERR_SHMMAP,
    }
)


def explain(error: BaseException, path: Path) -> str:
    """Return a message of what went wrong with the file of a store, and of what to do."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if isinstance(error, OSError):
        return f"{error.strerror or error}. {_PERMISSIONS.format(folder=path.parent)}"
    if isinstance(error, MemoryError):
        return "Out of memory. Free some memory, then call again."
    if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and _is_full(path):
        primary = sqlite3.SQLITE_FULL
    if code in _LOCKING:
        primary = sqlite3.SQLITE_PROTOCOL
    if isinstance(error, OverflowError | sqlite3.DataError):
        primary = sqlite3.SQLITE_TOOBIG
    if isinstance(error, sqlite3.ProgrammingError):
        primary = sqlite3.SQLITE_MISUSE
    return f"{error}. {advice(primary).format(folder=path.parent)}"


def advice(code: int | None) -> str:
    """Return what to do about an error with a primary code of SQLite's; it may name the ``{folder}``."""
    return _ADVICE.get(code, "It is left as it is. Name another file, or move this one aside.")


_PERMISSIONS = "Check the permissions of the file and of its folder {folder}."
_ADVICE: dict[int | None, str] = {
    sqlite3.SQLITE_FULL: "The disk is full; what is stored stays. Free some space on {folder}, then call again.",
    sqlite3.SQLITE_READONLY: "The file, its folder {folder} or the disk is read-only. Name a file that can be written.",
    sqlite3.SQLITE_CANTOPEN: _PERMISSIONS,
    sqlite3.SQLITE_PERM: _PERMISSIONS,
    sqlite3.SQLITE_AUTH: _PERMISSIONS,
    sqlite3.SQLITE_BUSY: f"Another process held it for {PATIENCE_S:.0f} s. Call again once that one is done.",
    sqlite3.SQLITE_LOCKED: f"Another process held it for {PATIENCE_S:.0f} s. Call again once that one is done.",
    sqlite3.SQLITE_PROTOCOL: "The file system of {folder} lacks the locks that SQLite needs, as some network file "
    "systems do. Name a file on a local disk.",
    sqlite3.SQLITE_IOERR: "The disk of {folder} reported a fault. Check the disk, or name a file on another one.",
    sqlite3.SQLITE_CORRUPT: "The file is damaged. The next run with it moves it aside and begins a new one.",
    sqlite3.SQLITE_NOTADB: "It is no SQLite file and is left as it is. Name another file.",
    sqlite3.SQLITE_NOMEM: "Free some memory, then call again.",
    sqlite3.SQLITE_TOOBIG: "A value is too large for SQLite.",
    sqlite3.SQLITE_MISUSE: "The store was closed. Open it again.",
}


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _LITTLE_SPACE
    except OSError:
        return False
