"""``qwenvl-kit plan IMAGES…``: say what a run would take, and what does not fit, before anything loads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from qwenvl_kit.cli.options import add_options, config_of
from qwenvl_kit.cli.places import cell_of, images_in
from qwenvl_kit.cli.tables import OUT_HELP, check_out, save
from qwenvl_kit.cli.terminal import escape

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_SHOWN_ERRORS = 5
_LINE_END = "\n"


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("plan", help="say what a run would take, before it loads", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders (all files in them), URLs")
    parser.add_argument("--out", type=Path, help=f"tokens of each image, as a {OUT_HELP}")
    add_options(parser)
    parser.set_defaults(work=work)


def work(parsed: argparse.Namespace) -> int:
    """Print the plan; the status is 1 where the run does not fit."""
    config = config_of(parsed)
    if parsed.out is not None:
        check_out(parsed.out)
    images = list(images_in(parsed.images))
    cells = pd.DataFrame({"image": pd.Series(list(map(cell_of, images)), dtype=object)})
    options: dict[str, Any] = {name: getattr(config, name) for name in config.explicit}
    plan = cells.vl.plan("image", **options)
    print(escape(str(plan), keep=_LINE_END))
    failed = plan.rows["error"].dropna()
    for message in failed.iloc[:_SHOWN_ERRORS]:
        print(f"  {escape(message)}")
    if len(failed) > _SHOWN_ERRORS:
        print(f"  … and {len(failed) - _SHOWN_ERRORS} more")
    if parsed.out is not None:
        save(pd.concat([pd.DataFrame({"image": pd.Series(images, dtype=object)}), plan.rows], axis=1), parsed.out)
    return 1 if plan.fits is False else 0
