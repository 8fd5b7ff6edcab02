"""``qwenvl-kit demo``: the embedded model captions drawn pictures; a table and a gallery show it beside the truth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qwenvl_kit import demo_gallery as gallery
from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("demo", help="see the embedded model at work", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("qwenvl_kit_demo"), help="folder for the gallery [%(default)s]"
    )
    parser.add_argument("--pictures", type=int, default=12, help="how many pictures to draw [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="which pictures to draw [%(default)s]")
    parser.set_defaults(work=work)


def work(parsed: argparse.Namespace) -> int:
    """Draw, caption, print and write the gallery."""
    try:
        parsed.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out must be a folder that can be made; {parsed.out}: {error.strerror}") from error
    exhibits = gallery.exhibits(max(1, parsed.pictures), seed=parsed.seed)
    print(gallery.table(exhibits))
    page = gallery.write(exhibits, parsed.out)
    print(f"\nGallery: {page.resolve()}")
    return 0
