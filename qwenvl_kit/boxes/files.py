"""Name the images of a frame of objects by files, and find the row of a file again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from qwenvl_kit.boxes.frame import picture_labels, pictures
from qwenvl_kit.errors import ConfigError, printable

Files = pd.Series | Mapping[Hashable, str]
"""File name of each image, by the label of its row, such as the column of paths."""

_SHOWN = 100
_LARGEST = 2**62  # of an integer
_LONGEST_SIDE = 2**31  # in pixels


def name_images(frame: pd.DataFrame, files: Files | None) -> dict[Hashable, str]:
    """Return the file name of each image of a frame of objects; by default the label of its row.

    Raises
    ------
    ConfigError
        `files` lacks an image, or two images have one name.
    """
    labels = picture_labels(frame)
    known = {label: str(label) for label in labels} if files is None else dict(files.items())
    missing = [label for label in labels if label not in known]
    if missing:
        raise ConfigError(f"files has no name for the row {_quoted(missing[0])}. Pass one for each row of the frame.")
    names = {label: str(known[label]) for label in labels}
    check_distinct(names, "file name")
    return names


def check_distinct(names: Mapping[Hashable, str], what: str) -> None:
    """Raise ConfigError where two images have one name."""
    first: dict[str, Hashable] = {}
    for label, name in names.items():
        if first.setdefault(name, label) is not label:
            raise ConfigError(
                f"Rows {_quoted(first[name])} and {_quoted(label)} have one {what}, {_quoted(name)}. Pass files= with "
                "a name of its own for each row."
            )


def find_rows(names: Sequence[str], files: Files | None, *, key: Callable[[str], str]) -> dict[str, Hashable]:
    """Return the row of each file that `files` names; by default the name itself.

    Parameters
    ----------
    names : sequence of str
        Files that a data set lists.
    files : Series or mapping, optional
        As of `name_images`. A name is found as it stands, else by `key` where that is unique.
    key : callable
        Shortens a name, such as `base_name`.

    Raises
    ------
    ConfigError
        None of the names is among `files`.
    """
    if files is None:
        return {name: name for name in names}
    rows = {str(name): label for label, name in files.items()}
    by_key: dict[str, list[Hashable]] = {}
    for name, label in rows.items():
        by_key.setdefault(key(name), []).append(label)
    found: dict[str, Hashable] = {}
    for name in names:
        candidates = [rows[name]] if name in rows else by_key.get(key(name), [])
        if len(candidates) == 1:
            found[name] = candidates[0]
    if names and not found:
        raise ConfigError(
            f"None of the {len(names)} images is in files; the first is {_quoted(names[0])}. Pass files= as those "
            "names, indexed by the rows' labels."
        )
    return found


def base_name(name: str) -> str:
    """Return the last part of a path or URL."""
    return PurePosixPath(name.replace("\\", "/")).name


def stem(name: str) -> str:
    """Return the last part of a path or URL, without its suffix."""
    return PurePosixPath(name.replace("\\", "/")).stem


def image_sizes(frame: pd.DataFrame, objects: pd.DataFrame) -> dict[Hashable, tuple[int, int]]:
    """Return width and height of each image whose size the frame or its record of images has."""
    sizes: dict[Hashable, tuple[int, int]] = {}
    known = pictures(frame)
    if {"width", "height"} <= set(known.columns):
        sized = known[known["width"].notna() & known["height"].notna()]
        sizes = {label: (int(w), int(h)) for label, w, h in sized[["width", "height"]].itertuples(name=None)}
    given = objects[objects["width"].notna() & objects["height"].notna()].drop_duplicates("row")
    for label, width, height in given[["row", "width", "height"]].itertuples(index=False, name=None):
        sizes[label] = (int(width), int(height))
    return sizes


def read_json(source: object) -> Any:
    """Return parsed JSON, read where `source` is a path.

    Raises
    ------
    ConfigError
        The file is no JSON.
    OSError
        It cannot be read.
    """
    if not isinstance(source, str | os.PathLike):
        return source
    try:
        return json.loads(Path(source).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{_quoted(os.fspath(source))} is no JSON: {error}. Pass a file of JSON.") from error


def field(record: object, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return a field of a JSON object.

    Raises
    ------
    ConfigError
        It is missing, of another type, or a number that no coordinate or identifier is.
    """
    value = record.get(name) if isinstance(record, Mapping) else None
    is_huge = isinstance(value, int) and abs(value) > _LARGEST
    if not isinstance(value, kind) or isinstance(value, bool) or is_huge:
        expected = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise ConfigError(f"{where} has {name}={printable(repr(value), _SHOWN)}. It must be of type {expected}.")
    return value


def number(record: object, name: str, where: str) -> float:
    """Return a number of a JSON object; raises ConfigError as `field`."""
    return float(field(record, name, (int, float), where))


def number_or_nan(record: Mapping[str, Any], name: str, where: str) -> float:
    """Return a number of a JSON object, NaN where it is missing or null."""
    return float("nan") if record.get(name) is None else number(record, name, where)


def corners(x: float, y: float, width: float, height: float) -> dict[str, float]:
    """Return the corners of a box by its top left one and its sides.

    Examples
    --------
    >>> corners(10, 20, 30, 5)
    {'x0': 10, 'y0': 20, 'x1': 40, 'y1': 25}
    """
    return {"x0": x, "y0": y, "x1": x + width, "y1": y + height}


def size_or_none(record: Mapping[str, Any], names: tuple[str, str], where: str) -> dict[str, int | None]:
    """Return width and height of an image in JSON; None where they are missing or null."""
    sides = {side: number_or_nan(record, name, where) for side, name in zip(("width", "height"), names, strict=True)}
    for side, value in sides.items():
        if not math.isnan(value) and not (value.is_integer() and 0 < value <= _LONGEST_SIDE):
            raise ConfigError(f"{where} has {side}={value:g}. It must be a whole number of pixels.")
    return {side: None if math.isnan(value) else int(value) for side, value in sides.items()}


def _quoted(value: object) -> str:
    return printable(repr(value), _SHOWN)
