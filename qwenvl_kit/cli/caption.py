"""``qwenvl-kit caption IMAGES… [--sidecar .txt] [--out FILE]``: caption files, folders and URLs.

Captions are printed, or written to text files beside the images, a table, or lines of JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pandas as pd

import qwenvl_kit
from qwenvl_kit.caption_run import caption_prompts, caption_rows
from qwenvl_kit.captions.captioning import Captioning
from qwenvl_kit.captions.sidecars import Existing
from qwenvl_kit.cli.caption_outputs import CaptionOutputs
from qwenvl_kit.cli.options import add_options, config_of
from qwenvl_kit.cli.places import Search, cell_of, images_in
from qwenvl_kit.cli.tables import OUT_HELP, check_out, read_weights
from qwenvl_kit.types import Prompt

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from qwenvl_kit.options import Config
    from qwenvl_kit.types import RowPrompt


def add(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("caption", help="caption images", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders (all files in them), globs, URLs")
    parser.add_argument("--recursive", action="store_true", help="search folders below, for files with image suffixes")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="leave out files of this name or path; repeatable",
    )
    _add_outputs(parser.add_argument_group("outputs"))
    _add_wording(parser.add_argument_group("wording"))
    add_options(parser)
    parser.set_defaults(work=work)


def _add_outputs(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", type=Path, help=OUT_HELP + "; default: print")
    group.add_argument(
        "--sidecar", metavar="SUFFIX", help="write each caption to a file beside its image, such as .txt, at once"
    )
    group.add_argument(
        "--existing", choices=get_args(Existing), help="what happens to such files that exist [skip: not asked again]"
    )
    group.add_argument("--jsonl", type=Path, metavar="FILE", help="write lines of JSON: file, caption, settings")


def _add_wording(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--prepend", default="", metavar="TEXT", help="put before each answer, such as 'trigger, '")
    group.add_argument("--append", default="", metavar="TEXT", help="put behind each answer")
    for flag, what in (("--must", "must"), ("--must-not", "must not")):
        help_text = f"a word that captions {what} contain: at fault, a row is asked once more, then flagged; repeatable"
        group.add_argument(flag, action="append", default=[], metavar="WORD", help=help_text)
    group.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="JSON of prompts and their weights, of which each row gets one by --seed; {name}, {stem} and {folder} "
        "in a prompt are those of the file",
    )


def work(parsed: argparse.Namespace) -> int:
    """Caption the images; finished rows are written also when the run fails."""
    config = config_of(parsed)
    names = ("sidecar", "existing", "prepend", "append", "must", "must_not")
    captioning = Captioning.of(**{name: getattr(parsed, name) for name in names})
    for out, flag in ((parsed.out, "--out"), (parsed.jsonl, "--jsonl")):
        if out is not None:
            check_out(out, has_record=flag == "--out", flag=flag)
    pool = None if parsed.prompts is None else read_weights(parsed.prompts)
    search = Search(parsed.recursive, parsed.recursive or parsed.sidecar is not None, parsed.exclude)
    # Names that are not UTF-8 fit an object column only, where pandas stores strings as Arrow.
    images = pd.Series(list(images_in(parsed.images, search)), dtype=object)
    cells = pd.Series(list(map(cell_of, images)), dtype=object)
    prompts = list(_texts(caption_prompts(cells, pool, config)))
    outputs = CaptionOutputs(images, prompts, parsed.out, parsed.jsonl, has_sidecars=parsed.sidecar is not None)
    return _caption(cells, pool, config, captioning, outputs)


def _caption(
    cells: pd.Series, pool: dict[str, float] | None, config: Config, captioning: Captioning, outputs: CaptionOutputs
) -> int:
    options: Any = {name: getattr(config, name) for name in config.explicit}
    before = qwenvl_kit.last_run()
    try:
        results = caption_rows(cells, pool, None, options, lambda frame: frame, captioning=captioning)
    except BaseException as error:
        done = getattr(error, "results", None)
        if done is None and qwenvl_kit.last_run() is not before:  # such as a full disk under the store
            done = qwenvl_kit.last_run()
        if done is not None:
            vars(error)["results"] = done
            outputs.write(done)
        raise
    status = outputs.write(results)
    sys.stdout.flush()
    return status


def _texts(prompts: list[RowPrompt]) -> Iterator[str | None]:
    for prompt in prompts:
        yield prompt.text if isinstance(prompt, Prompt) else prompt if isinstance(prompt, str) else None
