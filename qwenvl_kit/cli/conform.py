"""``qwenvl-kit conform``: ask an engine that has loaded the embedded model, and say which layers run as they should.

With ``--against``, two engines or settings of any checkpoint are compared instead, image by image.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_kit.cli.options import add_options, config_of
from qwenvl_kit.cli.places import cell_of, images_in
from qwenvl_kit.cli.tables import OUT_HELP, check_out, save
from qwenvl_kit.cli.terminal import escape
from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    import pandas as pd

_SHOWN = 200


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("conform", help="judge an engine, layer by layer", description=__doc__)
    parser.add_argument("images", nargs="*", metavar="IMAGES", help="with --against: files, folders, URLs")
    parser.add_argument(
        "--against", type=_options, metavar="JSON", help='options of the other engine, such as \'{"dtype": "float32"}\''
    )
    tolerance = "largest difference of log-probabilities, in nats [0.001; 0.5 for 16 bits]"
    parser.add_argument("--tolerance", type=float, help=tolerance)
    parser.add_argument("--scene-seed", type=int, default=0, help="other scenes [%(default)s]")
    parser.add_argument("--out", type=Path, help=f"verdicts as a {OUT_HELP}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write verdicts and record as JSON")
    add_options(parser)
    parser.set_defaults(work=work)


def work(parsed: argparse.Namespace) -> int:
    """Print the verdicts; the status is 1 where a layer fails."""
    import qwenvl_kit

    if parsed.out is not None:
        check_out(parsed.out)
    config = config_of(parsed)
    options: dict[str, Any] = {name: getattr(config, name) for name in config.explicit}
    images = [cell_of(one) for one in images_in(parsed.images)] if parsed.images else None
    frame = qwenvl_kit.conform(
        images, against=parsed.against, tolerance=parsed.tolerance, scene_seed=parsed.scene_seed, **options
    )
    _print(frame)
    if parsed.json is not None:
        _write_json(frame, parsed.json)
    if parsed.out is not None:
        save(frame, parsed.out)
    return 0 if frame.attrs.get("passed", True) else 1


def _print(frame: pd.DataFrame) -> None:
    print("\n".join(_verdict_lines(frame) if "layer" in frame else _pair_lines(frame)))


def _verdict_lines(frame: pd.DataFrame) -> Iterator[str]:
    for row in frame.to_dict("records"):
        counted = f"{row['cases'] - row['differ']}/{row['cases']}" if row["cases"] else ""
        yield f"{row['layer']:18}  {row['verdict']:9}  {counted:>5}  {escape(row['detail'])[:_SHOWN]}".rstrip()
    yield "conforms" if frame.attrs["passed"] else "does not conform"


def _pair_lines(frame: pd.DataFrame) -> Iterator[str]:
    yield f"{frame['same_text'].sum()} of {len(frame)} texts are equal; mean KL {frame.attrs['kl']:.3g} nats"
    for at, row in enumerate(frame.to_dict("records")):
        what = "equal" if row["same_text"] else f"parts after {row['common_tokens']} tokens"
        yield f"  {at}: {what}, KL {row['kl']:.3g}"


def _write_json(frame: pd.DataFrame, file: Path) -> None:
    content = {**frame.attrs, "rows": json.loads(frame.to_json(orient="records", force_ascii=False))}
    try:
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot write --json {file}: {error.strerror}. Pass another file.") from error


def _options(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(f'{text} is no JSON object. Use one such as {{"dtype": "float32"}}.')
    return content
