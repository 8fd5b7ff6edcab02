"""``optimum-cli export qwenvl``, installed as ``optimum.commands.register.qwenvl``, where optimum finds it.

This folder must have no ``__init__.py``, because other packages register commands in the same namespace
(https://github.com/huggingface/optimum/blob/main/optimum/commands/optimum_cli.py). Imports are light, because every
call of optimum-cli runs them.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from qwenvl_kit.cli.export import add_arguments, work
from qwenvl_kit.errors import QwenVLError


class QwenVLExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum is untyped
    """Export a Qwen2.5-VL checkpoint to ONNX, and compare the export with it."""

    COMMAND = CommandInfo(
        name="qwenvl", help="Export a Qwen2.5-VL to ONNX and compare the export with it (qwenvl_kit)."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("-m", "--model", required=True, help="a checkpoint's folder, a hub name, or demo")
        add_arguments(parser)

    def run(self) -> None:
        """Export; print an error as one line, without a traceback."""
        try:
            work(self.args)
        except QwenVLError as error:
            print(f"optimum-cli export qwenvl: {error}", file=sys.stderr)
            raise SystemExit(2) from None


REGISTER_COMMANDS = [(QwenVLExportCommand, ExportCommand)]
