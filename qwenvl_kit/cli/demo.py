"""``qwenvl-kit demo``: caption drawn images with the embedded model, and show a table and a gallery.

With ``--export-checkpoint DIR``, write the embedded model for other engines instead.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl_kit import demo_gallery as gallery
from qwenvl_kit.demo.exported import export_checkpoint
from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("demo", help="try the embedded model", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("qwenvl_kit_demo"), help="folder of the gallery [%(default)s]")
    parser.add_argument("--images", "--pictures", type=int, default=12, help="number of images [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images [%(default)s]")
    exported = "write the embedded model into DIR for other engines, in the layouts of transformers 5 and 4.5x, and end"
    parser.add_argument("--export-checkpoint", type=Path, metavar="DIR", help=exported)
    parser.set_defaults(work=work)


def work(parsed: argparse.Namespace) -> int:
    """Draw, caption, print and write the gallery; or export."""
    if parsed.export_checkpoint is not None:
        return _export(parsed.export_checkpoint)
    try:
        parsed.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"Cannot create the folder {parsed.out}: {error.strerror}. Pass another one with --out."
        ) from error
    exhibits = gallery.exhibits(max(1, parsed.images), seed=parsed.seed)
    print(gallery.table(exhibits))
    page = gallery.write(exhibits, parsed.out)
    print(f"\nGallery: {page.resolve()}")
    return 0


def _export(folder: Path) -> int:
    for written in export_checkpoint(folder):
        print(written)
    return 0
