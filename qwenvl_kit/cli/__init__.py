"""The command line: ``qwenvl-kit bench | caption | conform | demo | doctor | export | plan | store``.

Exit status: 0 on success (failed rows are reported and kept), 1 for failed rows under ``--on-error raise``, a failed
backend, a plan that does not fit or a file that cannot be written, 2 for an invalid option or a missing model, 130
after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence

from qwenvl_kit._version import __version__
from qwenvl_kit.cli import bench, caption, conform, demo, doctor, export, plan, store
from qwenvl_kit.cli.terminal import escape, safe_output, silence
from qwenvl_kit.errors import Interrupted, QwenVLError, QwenVLWarning, RowErrors

_COMMANDS = (caption, demo, plan, bench, conform, doctor, export, store)
_LINE_END = "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line; default: the process's own.

    Returns
    -------
    int
        The exit status.

    Examples
    --------
    >>> main(["caption", "no-such-folder/", "--backend", "echo"])
    2
    """
    with safe_output():
        try:
            try:
                return _run(arguments)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except OSError as error:  # such as a full disk behind the standard output
            _print_error(error)
            if sys.stdout is not None:
                silence(sys.stdout)
            return 1


def _run(arguments: Sequence[str] | None) -> int:
    parsed = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", QwenVLWarning)
            warnings.showwarning = _show_warning
            status: int = parsed.work(parsed)
    except (Interrupted, KeyboardInterrupt) as error:
        _print_error(error or "Interrupted.")
        return 130
    except QwenVLError as error:
        _print_error(error)
        return 1 if isinstance(error, RowErrors) or getattr(error, "results", None) is not None else 2
    return status


def _print_error(message: object) -> None:
    print(f"qwenvl-kit: {escape(str(message), keep=_LINE_END)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qwenvl-kit", description="Run Qwen2.5-VL on images.")
    parser.add_argument("--version", action="version", version=f"qwenvl_kit {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    return parser


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Print a warning on one line, without its place in the code."""
    name = "" if issubclass(category, QwenVLWarning) else f"{category.__name__}: "
    _print_error(f"{name}{message}")
