"""Write a frame atomically as Parquet, CSV or JSON lines.

Texts are written unchanged, except in CSV, where an apostrophe precedes texts that a spreadsheet would run as formulas.
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
    "table to write: *.parquet, *.csv or *.jsonl; in *.csv an apostrophe precedes texts that a spreadsheet would run "
    "as formulas"
)
_FORMATS = (".parquet", ".csv", ".jsonl")
_RECORD = ".config.json"
# https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def check_out(out: Path, *, has_record: bool = False, flag: str = "--out") -> None:
    """Check before the run that a table can be written.

    Parameters
    ----------
    out : Path
        The table.
    has_record : bool
        Check the record's file too.
    flag : str
        The option that names it; ``--jsonl`` takes lines of JSON only.

    Raises
    ------
    ConfigError
        Unsupported suffix, missing folder, or a file that cannot be created.
    MissingExtra
        Parquet without pyarrow.
    """
    formats = (".jsonl",) if flag == "--jsonl" else _FORMATS
    if out.suffix not in formats:
        raise ConfigError(f"{flag} {out.name!r} has an unsupported suffix. Use one of: {', '.join(formats)}.")
    if out.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401  # what pandas writes Parquet with
        except ImportError as error:
            raise MissingExtra("writing Parquet", "parquet") from error
    if not os.path.isdir(os.path.dirname(os.path.abspath(out))):
        raise ConfigError(f"The folder of {flag} {out} does not exist. Create {out.parent} first.")
    for file in (out, record_of(out)) if has_record else (out,):
        _check_file(file, out, flag)


def _check_file(file: Path, out: Path, flag: str) -> None:
    if os.path.isdir(file):
        raise ConfigError(f"{flag} cannot be written, because {file} is a folder. Pass the name of a file.")
    partial = _partial(file)
    try:
        with contextlib.suppress(FileExistsError):  # of a killed command; will be overwritten
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.unlink(partial)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{flag} {out} cannot be written: {why}. Pass another name or folder.") from error


def read_weights(file: Path) -> dict[str, float]:
    """Return the prompts of a JSON file, with their weights.

    Raises
    ------
    ConfigError
        The file cannot be read, or has other content.
    """
    try:
        pool = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"--prompts {file} cannot be read: {why}. Pass a file of JSON.") from error
    if not isinstance(pool, dict):
        raise ConfigError(f"--prompts {file} is no JSON object. Write prompts and weights: {{'Describe it.': 1}}.")
    return pool


def record_of(out: Path) -> Path:
    """Return the file of the record beside a table."""
    return out.with_name(f"{out.name}{_RECORD}")


def write_table(table: pd.DataFrame, out: Path, record: dict[Any, Any] | None = None) -> None:
    """Write a table, and its record beside it; each file appears only when complete."""
    plain = table.copy()
    plain.attrs = {}  # the record has its own file; Parquet would contain it twice
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
            # Surrogates become JSON escapes.
            text = json.dumps(record, ensure_ascii=False, indent=2)
            partial.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")


def save(table: pd.DataFrame, out: Path, record: dict[Any, Any] | None = None) -> tuple[Path, str | None]:
    """Write a table to `out` or, where that fails, to a new folder.

    Returns
    -------
    tuple
        The file, and the reason where it is not `out`.

    Raises
    ------
    OSError
        No folder is writable.
    """
    try:
        write_table(table, out, record)
    except Exception as error:  # includes errors of pyarrow and pandas: no answer is lost to a format
        saved = rescue(table, out.suffix, record)
        if saved is None:
            raise OSError(f"Cannot write {out}, nor a file elsewhere: {error}") from error
        return saved, str(getattr(error, "strerror", None) or error)
    return out, None


def rescue(table: pd.DataFrame, suffix: str, record: dict[Any, Any] | None = None) -> Path | None:
    """Write a table into a new folder, where one can be created; return None elsewhere."""
    for place in (tempfile.gettempdir(), os.getcwd(), os.path.expanduser("~")):
        for name in (f"captions{suffix}", "captions.jsonl"):
            with contextlib.suppress(Exception):
                return _saved(table, place, name, record)
    return None


@contextlib.contextmanager
def complete(out: Path) -> Iterator[Path]:
    """Yield a temporary name; the file is renamed when complete."""
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
