"""Write a frame as a whole file: Parquet, CSV or JSON lines, by the name's end.

Texts are written as they are. In CSV alone, a text that a spreadsheet would run as a formula gets an apostrophe first.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from qwenvl_kit.cli.terminal import whole
from qwenvl_kit.errors import ConfigError, MissingExtra

OUT_HELP = (
    "table to write: *.parquet, *.csv or *.jsonl; in *.csv an apostrophe leads texts that a spreadsheet would run as a "
    "formula"
)
_FORMATS = (".parquet", ".csv", ".jsonl")
_RECORD = ".config.json"
# https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def check_out(out: Path, *, has_record: bool = False) -> None:
    """Refuse, before any work is done, a name that cannot be written to.

    Parameters
    ----------
    out : Path
        The table.
    has_record : bool
        A record will be written beside it.

    Raises
    ------
    ConfigError
        Another ending, a folder that does not exist, or a file that cannot be made there.
    MissingExtra
        Parquet without pyarrow.
    """
    if out.suffix not in _FORMATS:
        raise ConfigError(f"--out must end with one of {', '.join(_FORMATS)}; got {out.name!r}; pass captions.csv")
    if out.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401  # what pandas writes Parquet with
        except ImportError as error:
            raise MissingExtra("writing Parquet", "parquet") from error
    if not os.path.isdir(os.path.dirname(os.path.abspath(out))):
        raise ConfigError(f"--out must lie in a folder that exists; got {out}; make {out.parent} first")
    for file in (out, record_of(out)) if has_record else (out,):
        _check_file(file, out)


def _check_file(file: Path, out: Path) -> None:
    if os.path.isdir(file):
        raise ConfigError(f"--out must be the name of a file; {file} is a folder; pass another name")
    partial = _partial(file)
    try:
        with contextlib.suppress(FileExistsError):  # of a command that was killed, and will be written over
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.unlink(partial)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"--out cannot be written: {why}; got {out}; pass another name or folder") from error


def record_of(out: Path) -> Path:
    """Return the name of the record beside a table."""
    return out.with_name(f"{out.name}{_RECORD}")


def write_table(table: pd.DataFrame, out: Path, record: dict[Any, Any] | None = None) -> None:
    """Write a table, and what ran beside it; a file gets its name only once it is whole."""
    plain = table.copy()
    plain.attrs = {}  # the record has a file of its own; Parquet would hold it twice
    for name in plain:
        if plain[name].dtype.kind == "O":
            cells = map(_harmless if out.suffix == ".csv" else _whole, plain[name])
            plain[name] = pd.Series(list(cells), index=plain.index, dtype=plain[name].dtype)
    with complete(out) as partial:
        if out.suffix == ".parquet":
            plain.to_parquet(partial, index=False)
        elif out.suffix == ".csv":
            plain.to_csv(partial, index=False)
        else:
            plain.to_json(partial, orient="records", lines=True, force_ascii=False)
    if record is not None:
        with complete(record_of(out)) as partial:
            # Half characters become the escapes that JSON has for them.
            text = json.dumps(record, ensure_ascii=False, indent=2)
            partial.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")


def save(table: pd.DataFrame, out: Path, record: dict[Any, Any] | None = None) -> tuple[Path, str | None]:
    """Write a table where it is wanted or, where that fails, wherever it can be written.

    Returns
    -------
    tuple
        The file, and why it is another one than `out`.

    Raises
    ------
    OSError
        There is no place for it.
    """
    try:
        write_table(table, out, record)
    except Exception as error:  # pyarrow's and pandas' own too: no answer is lost for its format
        saved = rescue(table, out.suffix, record)
        if saved is None:
            raise OSError(f"{out} cannot be written, nor a file elsewhere: {error}") from error
        return saved, str(getattr(error, "strerror", None) or error)
    return out, None


def rescue(table: pd.DataFrame, suffix: str, record: dict[Any, Any] | None = None) -> Path | None:
    """Write a table into a new folder, wherever one can be made; None where there is no place."""
    for place in (tempfile.gettempdir(), os.getcwd(), os.path.expanduser("~")):
        for name in (f"captions{suffix}", "captions.jsonl"):
            with contextlib.suppress(Exception):
                return _saved(table, place, name, record)
    return None


@contextlib.contextmanager
def complete(out: Path) -> Iterator[Path]:
    """Yield a name to write to; the file gets its own name only once it is whole."""
    partial = _partial(out)
    try:
        yield partial
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def _saved(table: pd.DataFrame, place: str, name: str, record: dict[Any, Any] | None) -> Path:
    folder = tempfile.mkdtemp(prefix="qwenvl_kit-", dir=place)
    try:
        write_table(table, Path(folder) / name, record)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Path(folder) / name


def _partial(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


def _whole(cell: object) -> object:
    return whole(cell) if isinstance(cell, str) else cell


def _harmless(cell: object) -> object:
    cell = _whole(cell)
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
