"""``qwenvl-kit caption PICTURES… --out FILE``: files, folders and addresses in, a table of captions out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import qwenvl_kit  # noqa: F401  # importing it is what registers df.vl
from qwenvl_kit.cli.options import add_options, config_of
from qwenvl_kit.cli.tables import check_out, complete, write_table
from qwenvl_kit.errors import ConfigError, Interrupted, QwenVLError

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("caption", help="caption pictures", description=__doc__)
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURES", help="files, folders (every file in them), addresses"
    )
    parser.add_argument("--out", type=Path, help="table to write: *.parquet, *.csv or *.jsonl; printed where left out")
    add_options(parser)
    parser.set_defaults(work=work)


def work(parsed: argparse.Namespace) -> int:
    """Caption the pictures; whatever ends the run, the rows that are done are written first."""
    config = config_of(parsed)
    write = _writer(parsed.out)
    frame = pd.DataFrame({"image": list(_pictures(parsed.pictures))})
    options: dict[str, Any] = {name: getattr(config, name) for name in config.asked}
    try:
        results = frame.vl.run("image", **options)
    except (QwenVLError, Interrupted) as error:
        if isinstance(done := getattr(error, "results", None), pd.DataFrame):
            write(_table(frame, done), done.attrs)
        raise
    write(_table(frame, results), results.attrs)
    return 0


def _pictures(places: list[str]) -> Iterator[str]:
    """Addresses and files as they are; of a folder each file, in order of names, hidden ones left out."""
    for place in places:
        path = Path(place).expanduser()
        if "://" not in place and path.is_dir():
            found = sorted(str(file) for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
            if not found:
                raise ConfigError(f"the folder {place} holds no files; name files, or a folder that has some")
            yield from found
        elif "://" not in place and place.endswith(("/", os.sep)):
            raise ConfigError(f"there is no folder {place}; relative paths start from {Path.cwd()}")
        else:
            yield place


def _table(frame: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, results], axis=1)


def _writer(out: Path | None) -> Callable[[pd.DataFrame, dict[Any, Any]], None]:
    """Choose, before any work is done, how the table will be written."""
    if out is None:
        return lambda table, _record: _print(table)
    check_out(out)
    return lambda table, record: _write(table, record, out)


def _print(table: pd.DataFrame) -> None:
    for image, text, status in zip(table["image"], table["text"], table["status"], strict=True):
        print(f"{image}\t{text if status == 'ok' else f'[{status}]'}")


def _write(table: pd.DataFrame, record: dict[Any, Any], out: Path) -> None:
    write_table(table, out)
    with complete(out.with_name(f"{out.name}.config.json")) as partial:
        partial.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    print(f"{len(table)} rows in {out}, what ran in {out.name}.config.json", file=sys.stderr)
