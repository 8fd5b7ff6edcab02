"""Write captioned images as files that training programs read: tables, conversations in JSON, and WebDataset shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd

from qwenvl_kit.captions.complete_files import complete_file
from qwenvl_kit.captions.shards import write_shards
from qwenvl_kit.errors import ConfigError, MissingExtra, RowError, printable
from qwenvl_kit.images import classify

if TYPE_CHECKING:
    from qwenvl_kit.options import Config, ImageSrcType

Format = Literal["parquet", "csv", "jsonl", "sharegpt", "llava", "webdataset"]
_BY_SUFFIX = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".tar": "webdataset"}


@dataclass(frozen=True, slots=True)
class CaptionedRows:
    """Rows to write.

    Attributes
    ----------
    frame : DataFrame
        All columns, for tables.
    cells : list
        The images.
    captions, prompts : list of str
        What was answered, and to which question.
    """

    frame: pd.DataFrame
    cells: list[object]
    captions: list[str]
    prompts: list[str]


def save_rows(rows: CaptionedRows, path: Path, form: str | None, config: Config, *, rows_per_shard: int) -> list[Path]:
    """Write rows, and return the files.

    Parameters
    ----------
    rows : CaptionedRows
        The rows.
    path : Path
        The file; of shards, ``train.tar`` names ``train-000000.tar`` and so on.
    form : str or None
        One of `Format`; None is that of the suffix.
    config : Config
        How images are read.
    rows_per_shard : int
        Most rows of a shard.

    Raises
    ------
    ConfigError
        The format is unknown, a folder is missing, or an image has no name or no text that the format can hold.
    MissingExtra
        Parquet without pyarrow.
    OSError
        A file cannot be written; an earlier one is as it was.
    """
    chosen = form_of(path, form)
    if not path.parent.is_dir():
        raise ConfigError(f"The folder of {path} does not exist. Create {path.parent} first.")
    if chosen == "webdataset":
        return write_shards(rows.cells, rows.captions, rows.prompts, path, config, rows_per_shard=rows_per_shard)
    if chosen in ("sharegpt", "llava"):
        names = [_name(row, cell, config.image_src_type) for row, cell in enumerate(rows.cells)]
        make = _sharegpt if chosen == "sharegpt" else _llava
        records = [make(*one) for one in zip(names, rows.prompts, rows.captions, strict=True)]
        text = json.dumps(records, ensure_ascii=False, indent=1)
        _replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    else:
        _replace(path, lambda partial: _write_table(rows.frame, partial, chosen))
    return [path]


def form_of(path: Path, form: str | None) -> str:
    """Return the format of a file.

    Raises
    ------
    ConfigError
        It is unknown, or needs another suffix.

    Examples
    --------
    >>> form_of(Path("train.jsonl"), None), form_of(Path("train.json"), "llava")
    ('jsonl', 'llava')
    """
    chosen = form or _BY_SUFFIX.get(path.suffix, "")
    if chosen not in get_args(Format):
        what = f"format={form!r} is invalid" if form else f"{path.name!r} has no suffix of a format"
        raise ConfigError(f"{what}. Use one of {', '.join(get_args(Format))}, or the suffix {', '.join(_BY_SUFFIX)}.")
    suffix = next((one for one, name in _BY_SUFFIX.items() if name == chosen), ".json")
    if path.suffix != suffix:
        raise ConfigError(f"format={chosen!r} writes *{suffix} files; got {path.name!r}. Rename the file.")
    return chosen


def _sharegpt(name: str, prompt: str, caption: str) -> dict[str, Any]:
    """Return a conversation as LLaMA-Factory reads it: data/README.md of https://github.com/hiyouga/LLaMA-Factory."""
    turns = [{"from": "human", "value": f"<image>{prompt}"}, {"from": "gpt", "value": caption}]
    return {"conversations": turns, "images": [name]}


def _llava(name: str, prompt: str, caption: str) -> dict[str, Any]:
    """Return a conversation as LLaVA reads it: docs/Finetune_Custom_Data.md of https://github.com/haotian-liu/LLaVA."""
    turns = [{"from": "human", "value": f"<image>\n{prompt}"}, {"from": "gpt", "value": caption}]
    return {"id": name, "image": name, "conversations": turns}


def _name(row: int, cell: object, image_src_type: ImageSrcType) -> str:
    """Return the path or address of a row's image."""
    try:
        sources = classify(cell, image_src_type)
    except RowError as error:
        raise ConfigError(f"Row {row}: {error.message} Leave the row out.") from error
    if len(sources) != 1 or sources[0].kind not in ("path", "url", "remote"):
        what = f"has {len(sources)} images" if len(sources) != 1 else f"is {sources[0].label}"
        raise ConfigError(f"Row {row} {what}, which has no file to name. Use format='webdataset', or save the images.")
    name = str(sources[0].value)
    if name != name.encode("utf-8", "replace").decode():
        raise ConfigError(f"Row {row}: the name {printable(repr(name), 100)} is not UTF-8. Rename the file.")
    return name


def _write_table(frame: pd.DataFrame, partial: Path, chosen: str) -> None:
    plain = frame.copy(deep=False)
    plain.attrs = {}
    try:
        if chosen == "parquet":
            plain.to_parquet(partial, index=False)
        elif chosen == "csv":
            plain.to_csv(partial, index=False)
        else:
            plain.to_json(partial, orient="records", lines=True, force_ascii=False)
    except ImportError as error:
        raise MissingExtra("writing Parquet", "parquet") from error
    except (TypeError, ValueError, OverflowError) as error:  # pyarrow's errors are of these
        raise ConfigError(
            f"A column cannot be written as {chosen}: {printable(str(error), 200)}. Leave out columns of images in "
            "memory, and rename files whose names are not UTF-8."
        ) from error


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    with complete_file(path) as partial:
        write(partial)


def text_rows(frame: pd.DataFrame, cells: pd.Series, captions: pd.Series, prompts: Sequence[str]) -> CaptionedRows:
    """Return the rows that have a caption."""
    has = captions.notna().to_numpy()
    kept = [row for row, one in enumerate(has) if one]
    return CaptionedRows(
        frame[has], [cells.iloc[row] for row in kept], captions[has].tolist(), [prompts[row] for row in kept]
    )
