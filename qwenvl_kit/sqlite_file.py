"""Open the SQLite file of a store: find it, create it, or move a broken one aside."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from qwenvl_kit import sqlite_errors
from qwenvl_kit._warnings import warn
from qwenvl_kit.errors import ConfigError, StoreError, StoreWarning
from qwenvl_kit.sqlite_schema import APPLICATION_ID, check_owner, check_tables, is_broken, prepare

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PARTS = ("", "-wal", "-shm", "-journal")
_creating = threading.Lock()


def locate(name: str | os.PathLike[str]) -> Path:
    """Return the file that a name stands for, with links and ``~`` resolved.

    Raises
    ------
    ConfigError
        The name cannot be that of a file.
    StoreError
        Its folder does not exist, or it is no regular file.
    """
    text = os.fspath(name)
    if not text.strip() or text == ":memory:" or "\0" in text:
        raise ConfigError(
            f"store={text!r} does not name a file. Pass a name such as 'captions.db', or leave store out."
        )
    mode = None
    try:
        path = Path(os.path.realpath(os.path.expanduser(text)))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # another process may just move it aside
            mode = path.stat().st_mode
        holds_folder = path.parent.is_dir()
    except OSError as error:
        raise StoreError(f"store={text!r} cannot be used: {error.strerror}. Name another file.") from error
    if not holds_folder:
        what = "is not a folder" if path.parent.exists() else "does not exist"
        raise StoreError(f"store={text!r} cannot be used: the folder {path.parent} {what}. Make the folder first.")
    if mode is not None and not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise StoreError(f"store={text!r} cannot be used: it is {what}. Name a file, such as 'captions.db'.")
    return path


def open_to_write(path: Path, shown: str) -> sqlite3.Connection:
    """Open a store, or begin one; a broken one is moved aside first, with a warning.

    Parameters
    ----------
    path : Path
        Where it is, from `locate`.
    shown : str
        Its name in messages.

    Raises
    ------
    StoreError
        The file is no store, or one of a later version.
    sqlite3.Error, OSError, MemoryError
        It cannot be opened.
    """
    # From the first look on: SQLite deletes the -wal of the file's name when it closes a file that was moved meanwhile,
    # https://www.sqlite.org/howtocorrupt.html#_unlinking_or_renaming_a_database_file_while_in_use
    with _alone_in(path.parent):
        try:
            return _open(path, shown)
        except _Broken as error:
            mode = _move_aside(path, shown, error)
        return _open(path, shown, mode)


def open_existing(path: Path, shown: str) -> sqlite3.Connection:
    """Open a store that must be there and sound, to change it.

    Raises
    ------
    StoreError, sqlite3.Error, OSError, MemoryError
        As for `open_to_write`; also where there is no store.
    """
    open_to_read(path, shown).close()
    try:
        return _open(path, shown)
    except _Broken as error:
        raise StoreError(
            f"store={shown!r} cannot be used: {error}. {sqlite_errors.advice(sqlite3.SQLITE_CORRUPT)}"
        ) from error


def open_to_read(path: Path, shown: str) -> sqlite3.Connection:
    """Open a store to look at it only; nothing is written, not even a lock file where the medium allows none.

    Raises
    ------
    StoreError, sqlite3.Error, OSError, MemoryError
        As for `open_to_write`; also where there is no store.
    """
    with contextlib.ExitStack() as copies:
        # Readers need the -wal and -shm files, https://www.sqlite.org/wal.html#readonly. One that may write makes them
        # and removes them when it closes, but then also moves into the file what stands in the -wal.
        may_write = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
        has_log = any(_size(path, part) for part in ("-wal", "-journal"))
        if may_write:
            choice = "mode=ro" if has_log else "mode=rw"
        elif has_log:
            path, choice = _copied(path, copies), "mode=rw"
        else:
            choice = "mode=ro&immutable=1"
        connection = _connect(f"{path.as_uri()}?{choice}", is_uri=True)
        try:
            connection.execute("PRAGMA query_only = ON")
            if check_owner(connection, shown)[0] == 0:
                raise StoreError(f"store={shown!r} is no store of this package: it is empty. Name another file.")
            check_tables(connection)
        except BaseException:
            connection.close()
            raise
        return connection


class _Broken(Exception):
    """SQLite cannot read the file."""


def _open(path: Path, shown: str, mode: int = 0o600) -> sqlite3.Connection:
    _create(path, mode)
    if path.stat().st_size == 1 and path.read_bytes() != b"S":  # SQLite takes one byte for nothing, and its own for "S"
        raise _Broken("file is not a database")
    try:
        connection = _connect(path)
        try:
            prepare(connection, path, shown)
        except BaseException:
            connection.close()
            raise
    except sqlite3.DatabaseError as error:
        if is_broken(error):
            raise _Broken(str(error)) from error
        raise
    return connection


def _connect(name: str | Path, *, is_uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(
        name, uri=is_uri, timeout=sqlite_errors.PATIENCE_S, check_same_thread=False, isolation_level=None
    )


def _create(path: Path, mode: int) -> None:
    """Make an empty file that only its owner reads, where there is none; SQLite's other files take its mode."""
    # Closing a file drops all locks that this process has on it, https://www.sqlite.org/howtocorrupt.html#_posix_advisory
    # so no other thread may open it in between.
    with _creating, contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        if mode != 0o600:  # that of a broken file, which others may share; not narrowed by the umask
            path.chmod(mode)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one process or thread at a time open stores of a folder.

    Of two that find the same file broken, the second would move the new file of the first.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        handle = None
    if handle is None or fcntl is None:
        yield
        return
    try:
        _lock(handle, folder)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # a child forked meanwhile may hold the handle too
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    deadline = time.monotonic() + sqlite_errors.PATIENCE_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise StoreError(
                    f"A store in {folder} cannot be opened: another process has been opening one there for "
                    f"{sqlite_errors.PATIENCE_S:g} s. Retry when it is done, or end it."
                ) from error
            time.sleep(0.02)
        except OSError:  # a file system without such locks
            return


def _move_aside(path: Path, shown: str, error: _Broken) -> int:
    """Give what is broken another name, since some of it may be saved; return its mode."""
    with path.open("rb") as file:
        head = file.read(100)
    # https://www.sqlite.org/fileformat.html#the_database_header
    if not head.startswith(b"SQLite format 3\0") or int.from_bytes(head[68:72]) != APPLICATION_ID:
        raise StoreError(
            f"store={shown!r} is no store of this package ({error}) and is left as it is. Name another file, or "
            "move this one aside if it is a damaged store."
        ) from error
    mode = stat.S_IMODE(path.stat().st_mode)
    aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}")
    for part in _PARTS:
        with contextlib.suppress(FileNotFoundError):
            os.rename(_part(path, part), _part(aside, part))
    warn(f"store={shown!r} is broken ({error}). It was moved to {aside.name} and a new one was created.", StoreWarning)
    return mode


def _copied(path: Path, copies: contextlib.ExitStack) -> Path:
    folder = Path(copies.enter_context(tempfile.TemporaryDirectory(prefix="qwenvl_kit-", ignore_cleanup_errors=True)))
    for part in ("", "-wal", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(_part(path, part), _part(folder / "copy.db", part))
    return folder / "copy.db"


def _part(path: Path, part: str) -> Path:
    return path.with_name(path.name + part)


def _size(path: Path, part: str) -> int:
    try:
        return _part(path, part).stat().st_size
    except FileNotFoundError:
        return 0


def after_fork() -> None:
    """Make a lock that no thread of the parent holds."""
    global _creating
    _creating = threading.Lock()
