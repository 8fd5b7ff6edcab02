"""``qwenvl-kit caption PICTURES… --out FILE``: caption files, folders and addresses, and print or write a table."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import qwenvl_kit
from qwenvl_kit.cli.options import add_options, config_of
from qwenvl_kit.cli.tables import OUT_HELP, check_out, record_of, rescue, save
from qwenvl_kit.cli.terminal import escape, whole
from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("caption", help="caption pictures", description=__doc__)
    parser.add_argument(
        "pictures", nargs="+", metavar="PICTURES", help="files, folders (every file in them), addresses"
    )
    parser.add_argument("--out", type=Path, help=OUT_HELP + "; printed where left out")
    add_options(parser)
    parser.set_defaults(work=work)


def work(parsed: argparse.Namespace) -> int:
    """Caption the pictures; whatever ends the run, the rows that are done are written first."""
    config = config_of(parsed)
    if parsed.out is not None:
        check_out(parsed.out, has_record=True)
    # Names that are no UTF-8 fit an object column only, where pandas holds texts as Arrow.
    pictures = list(_pictures(parsed.pictures))
    frame = pd.DataFrame({"image": pd.Series(pictures, dtype=object)})
    cells = pd.DataFrame({"image": pd.Series(list(map(_cell, pictures)), dtype=object)})
    options: dict[str, Any] = {name: getattr(config, name) for name in config.explicit}
    before = qwenvl_kit.last_run()
    try:
        results = cells.vl.run("image", **options)
    except BaseException as error:
        done = getattr(error, "results", None)
        if done is None and qwenvl_kit.last_run() is not before:  # as where a store's disk was full
            done = qwenvl_kit.last_run()
        if done is not None:
            vars(error)["results"] = done
            _give(frame, done, parsed.out)
        raise
    return _give(frame, results, parsed.out)


def _pictures(places: list[str]) -> Iterator[str]:
    """Addresses and files as they are; of a folder each file, in order of names, hidden ones left out."""
    for place in places:
        path = os.path.expanduser(place)
        if "://" not in place and os.path.isdir(path):
            yield from _files(path, place)
        elif "://" not in place and place.endswith(("/", os.sep)):
            raise ConfigError(f"there is no folder {place}; relative paths start from {Path.cwd()}")
        else:
            yield place


def _cell(place: str) -> str:
    """Return what names a file in a cell, where white space around a path does not count but may be part of a name."""
    return Path(os.path.abspath(place)).as_uri() if place != place.strip() and os.path.isfile(place) else place


def _files(folder: str, shown: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entry.path for entry in entries if entry.is_file() and not entry.name.startswith("."))
    except OSError as error:
        raise ConfigError(f"the folder {shown} cannot be read: {error.strerror}; name files, or another one") from error
    if not found:
        raise ConfigError(f"the folder {shown} holds no files; name files, or a folder that has some")
    return found


def _give(frame: pd.DataFrame, results: pd.DataFrame, out: Path | None) -> int:
    """Print the table, or write it."""
    table = pd.concat([frame, results], axis=1)
    if out is not None:
        return _write(table, results.attrs, out)
    try:
        for image, text, status in zip(table["image"], table["text"], table["status"], strict=True):
            print(f"{escape(whole(image))}\t{escape(text) if status == 'ok' else f'[{status}]'}")
        sys.stdout.flush()
    except OSError as error:  # such as a full disk behind the standard output
        saved = rescue(table, ".csv", results.attrs)
        where = "no file could be made for them" if saved is None else f"they are in {saved}"
        print(f"qwenvl-kit: captions cannot be printed ({error.strerror}); {where}", file=sys.stderr)
        return 1
    return 0


def _write(table: pd.DataFrame, record: dict[Any, Any], out: Path) -> int:
    saved, why = save(table, out, record)
    if why is not None:
        print(f"qwenvl-kit: {out} cannot be written ({why}); the {len(table)} rows are in {saved}", file=sys.stderr)
        return 1
    print(f"{len(table)} rows in {out}, what ran in {record_of(out).name}", file=sys.stderr)
    return 0
