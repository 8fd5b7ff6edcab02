"""``qwenvl-kit caption IMAGES… --out FILE``: caption files, folders and URLs, and print or write a table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import qwenvl_kit
from qwenvl_kit.cli.options import add_options, config_of
from qwenvl_kit.cli.places import cell_of, images_in
from qwenvl_kit.cli.tables import OUT_HELP, check_out, record_of, rescue, save
from qwenvl_kit.cli.terminal import escape, whole

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("caption", help="caption images", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders (all files in them), URLs")
    parser.add_argument("--out", type=Path, help=OUT_HELP + "; default: print")
    add_options(parser)
    parser.set_defaults(work=work)


def work(parsed: argparse.Namespace) -> int:
    """Caption the images; finished rows are written also when the run fails."""
    config = config_of(parsed)
    if parsed.out is not None:
        check_out(parsed.out, has_record=True)
    # Names that are not UTF-8 fit an object column only, where pandas stores strings as Arrow.
    images = list(images_in(parsed.images))
    frame = pd.DataFrame({"image": pd.Series(images, dtype=object)})
    cells = pd.DataFrame({"image": pd.Series(list(map(cell_of, images)), dtype=object)})
    options: dict[str, Any] = {name: getattr(config, name) for name in config.explicit}
    before = qwenvl_kit.last_run()
    try:
        results = cells.vl.run("image", **options)
    except BaseException as error:
        done = getattr(error, "results", None)
        if done is None and qwenvl_kit.last_run() is not before:  # such as a full disk under the store
            done = qwenvl_kit.last_run()
        if done is not None:
            vars(error)["results"] = done
            _output(frame, done, parsed.out)
        raise
    return _output(frame, results, parsed.out)


def _output(frame: pd.DataFrame, results: pd.DataFrame, out: Path | None) -> int:
    """Print or write the table."""
    table = pd.concat([frame, results], axis=1)
    if out is not None:
        return _write(table, results.attrs, out)
    try:
        for image, text, status in zip(table["image"], table["text"], table["status"], strict=True):
            print(f"{escape(whole(image))}\t{escape(text) if status == 'ok' else f'[{status}]'}")
        sys.stdout.flush()
    except OSError as error:  # such as a full disk behind the standard output
        saved = rescue(table, ".csv", results.attrs)
        where = "Saving them to a file failed too." if saved is None else f"They are in {saved}"
        print(f"qwenvl-kit: Cannot print the captions: {error.strerror}. {where}", file=sys.stderr)
        return 1
    return 0


def _write(table: pd.DataFrame, record: dict[Any, Any], out: Path) -> int:
    saved, why = save(table, out, record)
    if why is not None:
        print(f"qwenvl-kit: Cannot write {out}: {why}. The {len(table)} rows are in {saved}", file=sys.stderr)
        return 1
    print(f"{len(table)} rows in {out}, the record in {record_of(out).name}", file=sys.stderr)
    return 0
