"""``qwenvl-kit store show | export | prune FILE``: inspect a store, write it as a table, delete old results."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from qwenvl_kit.cli.tables import OUT_HELP, check_out, save
from qwenvl_kit.cli.terminal import escape
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.store import open_store

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DAY_S = 86_400


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("store", help="inspect a store of results", description=__doc__)
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="count results and list runs")
    export = actions.add_parser("export", help="write all results to a table")
    export.add_argument("--out", type=Path, required=True, help=OUT_HELP)
    prune = actions.add_parser("prune", help="delete old results and free their space")
    prune.add_argument("--older-than-days", type=float, required=True, help="delete results older than this")
    for action, work in ((show, _show), (export, _export), (prune, _prune)):
        action.add_argument("file", type=Path, help="path of the store")
        action.set_defaults(work=work)


def _show(parsed: argparse.Namespace) -> int:
    with open_store(_existing(parsed.file), access="read") as store:
        counts = store.counts()
        print(f"{parsed.file}: {counts['results']} results, {counts['sources']} known URLs, {counts['runs']} runs")
        for record in store.runs():
            print(f"  {escape(_line(record))}")
    return 0


def _line(record: dict[str, Any]) -> str:
    try:
        ran, rows = record["effective"], ", ".join(f"{n} {status}" for status, n in record["rows"].items())
        return (
            f"{record['started']}  {ran['model']} ({ran['dtype']}, {ran['device']}): {rows or 'no rows'}, "
            f"{record['cached']} of them cached, {record['seconds']:.1f} s"
        )
    except (KeyError, TypeError, ValueError, AttributeError):  # of another program or version
        return "unreadable record"


def _export(parsed: argparse.Namespace) -> int:
    check_out(parsed.out)
    with open_store(_existing(parsed.file), access="read") as store:
        table = pd.DataFrame(store.results())
    saved, why = save(table, parsed.out)
    if why is not None:
        print(f"qwenvl-kit: Cannot write {parsed.out}: {why}. The results are in {saved}", file=sys.stderr)
        return 1
    print(f"{len(table)} results in {parsed.out}")
    return 0


def _prune(parsed: argparse.Namespace) -> int:
    with open_store(_existing(parsed.file), access="existing") as store:
        n_pruned = store.prune(time.time() - parsed.older_than_days * _DAY_S)
        print(f"{n_pruned} results deleted, {store.counts()['results']} kept")
    return 0


def _existing(file: Path) -> Path:
    file = Path(os.path.expanduser(file))
    if not os.path.isfile(file):
        raise ConfigError(f"No store {file}. Relative paths start from {Path.cwd()}.")
    return file
