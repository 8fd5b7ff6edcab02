"""``qwenvl-kit export``: export a checkpoint to ONNX, and compare it with the checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("export", help="export a checkpoint to ONNX", description=__doc__)
    parser.add_argument("model", help="demo, a checkpoint folder, or a name in the local hub cache")
    add_arguments(parser)
    parser.set_defaults(work=work)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments shared with ``optimum-cli export qwenvl``."""
    parser.add_argument("--adapter", metavar="FOLDER", help="a LoRA adapter that is folded into the weights")
    parser.add_argument("out", type=Path, help="folder to create; replaces an older export")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16"), help="dtype of unquantised weights [%(default)s]"
    )
    parser.add_argument(
        "--quantize",
        choices=("int8", "int4", "w8a8"),
        help="quantise the text model: int8 or int4 weights in blocks, or int8 weights and activations",
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
        adapter=parsed.adapter,
        progress=lambda line: print(line, flush=True),
    )
    if done.parity is not None:
        print(done.parity)
    size = sum(file["bytes"] for file in done.manifest["files"].values())
    print(f"{done.path}: {size / 1e6:.1f} MB; run it with backend='onnx', model_name={str(done.path)!r}")
    return 0
