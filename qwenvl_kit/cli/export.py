"""``qwenvl-kit export``: an ONNX export of a checkpoint, compared with it before it is called done."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("export", help="export a checkpoint to ONNX", description=__doc__)
    parser.add_argument("model", help="demo, a checkpoint's folder, or a name in the local hub cache")
    add_arguments(parser)
    parser.set_defaults(work=work)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``optimum-cli export qwenvl`` takes too."""
    parser.add_argument("out", type=Path, help="the folder to make; an older export there is replaced")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16"), help="of what is not quantised [%(default)s]"
    )
    parser.add_argument(
        "--quantize",
        choices=("int8", "int4", "w8a8"),
        help="the text model's matrices: weights in blocks, or weights and activations in int8",
    )
    parser.add_argument(
        "--verify",
        type=int,
        default=8,
        metavar="N",
        help="rows to compare with the checkpoint; 0 for none [%(default)s]",
    )


def work(parsed: argparse.Namespace) -> int:
    """Export, compare and print."""
    from qwenvl_kit.export import to_onnx

    done = to_onnx(
        parsed.model,
        parsed.out,
        dtype=parsed.dtype,
        quantize=parsed.quantize,
        verify_rows=parsed.verify,
        progress=lambda said: print(said, flush=True),
    )
    if done.parity is not None:
        print(done.parity)
    size = sum(file["bytes"] for file in done.manifest["files"].values())
    print(f"{done.path}: {size / 1e6:.1f} MB; run it with backend='onnx', model_name={str(done.path)!r}")
    return 0
