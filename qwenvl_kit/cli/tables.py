"""A frame in, a whole file out: Parquet, CSV or JSON lines, by the name's end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl_kit.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    import pandas as pd

_FORMATS = (".parquet", ".csv", ".jsonl")


def check_out(out: Path) -> None:
    """Refuse, before any work is done, a name that cannot be written to.

    Raises
    ------
    ConfigError
        Another ending, or a folder that does not exist.
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
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"--out must lie in a folder that exists; got {out}; make {out.parent} first")


def write_table(table: pd.DataFrame, out: Path) -> None:
    """Write a table; the file gets its name only once it is whole."""
    plain = table.copy()
    plain.attrs = {}  # the record has a file of its own; Parquet would hold it twice
    with complete(out) as partial:
        if out.suffix == ".parquet":
            plain.to_parquet(partial, index=False)
        elif out.suffix == ".csv":
            plain.to_csv(partial, index=False)
        else:
            plain.to_json(partial, orient="records", lines=True, force_ascii=False)


@contextlib.contextmanager
def complete(out: Path) -> Iterator[Path]:
    """Give a name to write to; the file gets its own name only once it is whole."""
    partial = out.with_name(f".{out.name}.partial")
    try:
        yield partial
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
