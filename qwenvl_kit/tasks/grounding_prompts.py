"""What detection and pointing ask of each row: its labels, its prompt and the schema of its answer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import pandas as pd

from qwenvl_kit.errors import ConfigError, printable
from qwenvl_kit.tasks.box_parser import Kind
from qwenvl_kit.tasks.classify import checked_labels, is_missing
from qwenvl_kit.types import HEIGHT, WIDTH, Constraint

Language = Literal["en", "zh"]
Labels = tuple[str, ...]

_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_PROMPTS: dict[tuple[Kind, Language], str] = {
    # In the form of https://github.com/QwenLM/Qwen2.5-VL/blob/main/cookbooks/spatial_understanding.ipynb
    ("box", "en"): "Detect every {things} in the image and output the coordinates in JSON format.",
    ("box", "zh"): "检测图中所有的{things}，以JSON格式输出坐标。",
    ("point", "en"): "Point to every {things} in the image and output the coordinates in JSON format.",
    ("point", "zh"): "指出图中所有的{things}，以JSON格式输出坐标。",
}
_LONGEST_LABEL = 100  # characters; without a bound, a model that repeats itself fills the label
_SIDES: dict[Kind, tuple[str, ...]] = {"box": (WIDTH, HEIGHT) * 2, "point": (WIDTH, HEIGHT)}
_SHOWN = 60


def object_labels(labels: object, index: pd.Index) -> list[Labels]:
    """Return the labels of each row; empty where any object is meant.

    Parameters
    ----------
    labels : list of str, list of lists, Series or None
        Those of all rows; or of each row, where a single label may be a text, and a missing value means any object.
    index : Index
        Of the images.

    Raises
    ------
    ConfigError
        There are none; a label is no text, blank or there twice; there is not one entry per row.

    Examples
    --------
    >>> object_labels(["cat", "red car"], pd.RangeIndex(2))
    [('cat', 'red car'), ('cat', 'red car')]
    >>> object_labels(pd.Series(["cat", None]), pd.RangeIndex(2))
    [('cat',), ()]
    """
    if labels is None:
        return [()] * len(index)
    if isinstance(labels, str | bytes) or not isinstance(labels, Sequence | np.ndarray | pd.Series | pd.Index):
        raise ConfigError(
            f"labels must be a list of texts, or one list per row; got {printable(repr(labels), _SHOWN)}. Pass "
            "['cat'] for one label."
        )
    given = list(cast("Sequence[object]", labels))
    if not given and len(index):
        raise ConfigError("labels is empty. Pass at least one, or None for any object.")
    if not isinstance(labels, pd.Series) and all(isinstance(one, str) for one in given):
        return [checked_labels(given, "labels", n_least=1)] * len(index)
    if len(given) != len(index):
        raise ConfigError(
            f"labels has {len(given)} entries for {len(index)} rows. Pass one list per row, or one list for all."
        )
    return [_of_row(one, row) for row, one in enumerate(given)]


def object_prompt(kind: Kind, labels: Labels, language: Language | None) -> str:
    """Return the prompt for objects; in Chinese where a label is, unless a language is given.

    Examples
    --------
    >>> object_prompt("box", ("cat", "red car"), None)
    'Detect every cat and red car in the image and output the coordinates in JSON format.'
    >>> object_prompt("point", ("猫",), None)
    '指出图中所有的猫，以JSON格式输出坐标。'
    """
    spoken = language or ("zh" if any(map(_CHINESE.search, labels)) else "en")
    return _PROMPTS[kind, spoken].format(things=_things(labels, spoken))


def object_constraint(kind: Kind, labels: Labels) -> Constraint:
    """Return the schema of a list of objects in the model family's own form; of these labels, where there are any.

    Coordinates are at most the sides of the image that the model gets: see `Constraint.at`.

    Examples
    --------
    >>> schema = json.loads(object_constraint("point", ("cat",)).at(476, 644).source)
    >>> schema["items"]["properties"]["label"]
    {'enum': ['cat']}
    >>> [one["maximum"] for one in schema["items"]["properties"]["point_2d"]["prefixItems"]]
    [644, 476]
    """
    name, sides = f"{'bbox' if kind == 'box' else 'point'}_2d", _SIDES[kind]
    numbers = [{"type": "integer", "minimum": 0, "maximum": side} for side in sides]
    properties: dict[str, Any] = {
        name: {"type": "array", "prefixItems": numbers, "items": False, "minItems": len(sides), "maxItems": len(sides)},
        "label": {"enum": list(labels)} if labels else {"type": "string", "maxLength": _LONGEST_LABEL},
    }
    item = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    source = json.dumps({"type": "array", "items": item}, ensure_ascii=False, separators=(",", ":"))
    return Constraint("json", source, is_sized=True)


def check_language(language: object) -> None:
    """Raise ConfigError for another value than a `Language` and None."""
    if language not in ("en", "zh", None):
        raise ConfigError(f"language must be 'en', 'zh' or None; got {printable(repr(language), _SHOWN)}.")


def _of_row(labels: object, row: int) -> Labels:
    if isinstance(labels, str):
        return checked_labels([labels], f"labels of row {row}", n_least=1) if labels else ()
    return () if is_missing(labels) else checked_labels(labels, f"labels of row {row}", n_least=1)


def _things(labels: Labels, language: Language) -> str:
    """Return labels as an enumeration, the general word where there are none."""
    if language == "zh":
        return "、".join(labels) or "物体"
    if not labels:
        return "object"
    *first, last = labels
    return f"{', '.join(first)} and {last}" if first else last
