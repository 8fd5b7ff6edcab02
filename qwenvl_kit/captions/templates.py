"""Fill the fields of a prompt with values of each row: ``"Describe {name}; its tags are {tags}."``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qwenvl_kit.captions.image_files import file_names
from qwenvl_kit.columns import column_names, pick_column
from qwenvl_kit.errors import ConfigError, RowError, printable

if TYPE_CHECKING:
    from qwenvl_kit.options import ImageSrcType

FILE_FIELDS = ("name", "stem", "folder")
"""Fields of the image's file, where no column has the name."""

_BRACES = re.compile(r"(\{+)([^{}\n]{1,100})(\}+)")
_Text = Callable[[int], str]


def fill_template(
    template: str, frame: pd.DataFrame, cells: Sequence[object], image_src_type: ImageSrcType = "auto"
) -> list[str | RowError]:
    """Return the prompt of each row.

    A field is a name in braces: a column of the frame, or else ``name``, ``stem`` or ``folder`` of the image's file.
    Lists of values are joined by commas. ``{{tags}}`` is the text ``{tags}``. Braces around anything else than a name,
    as in JSON, are text. There are no conversions, format specifications and attributes.

    Parameters
    ----------
    template : str
        The prompt of all rows.
    frame : DataFrame
        Its columns.
    cells : sequence
        The images, in the order of the frame's rows.
    image_src_type : str
        How to read texts and bytes among the cells.

    Returns
    -------
    list of str or RowError
        The error of a row whose value is missing or cannot be written as text.

    Raises
    ------
    ConfigError
        A field is neither a column nor one of the file.

    Examples
    --------
    >>> frame = pd.DataFrame({"image": ["dogs/rex.png"], "tags": [["old", "brown"]]})
    >>> fill_template('{stem}, {tags}. Answer as {"breed": …}, not {{tags}}.', frame, frame["image"])
    ['rex, old, brown. Answer as {"breed": …}, not {tags}.']
    """
    fields = {name: _reader(name, frame, cells, image_src_type) for name in field_names(template, frame)}
    if not fields and "{{" not in template:
        return [template] * len(cells)
    return [_filled(template, fields, row) for row in range(len(cells))]


def field_names(template: str, frame: pd.DataFrame) -> list[str]:
    """Return the fields of a template.

    Raises
    ------
    ConfigError
        One is neither a column nor a field of the file.
    """
    known = {name for name in frame.columns if isinstance(name, str)} | set(FILE_FIELDS)
    found = list(dict.fromkeys(match[2] for match in _BRACES.finditer(template) if _is_field(match, known)))
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f" Did you mean {{{near[0]}}}?" if near else ""
            raise ConfigError(
                f"The prompt has the field {{{name}}}, which is neither a column nor {', '.join(FILE_FIELDS)}. The "
                f"columns are: {column_names(frame)}.{hint} Write {{{{{name}}}}} for the text {{{name}}}."
            )
    return found


def _is_field(match: re.Match[str], known: set[str]) -> bool:
    """Return whether braces are those of a field: an odd number of them around a name."""
    return min(len(match[1]), len(match[3])) % 2 == 1 and (match[2] in known or match[2].isidentifier())


def _filled(template: str, fields: Mapping[str, _Text], row: int) -> str | RowError:
    def value(match: re.Match[str]) -> str:
        n, name = min(len(match[1]), len(match[3])), match[2]
        if name not in fields and not name.isidentifier():
            return match[0]
        left, right = match[1][n:] + "{" * (n // 2), "}" * (n // 2) + match[3][n:]
        return left + (fields[name](row) if n % 2 else name) + right

    try:
        return _BRACES.sub(value, template)
    except RowError as error:
        return error


def _reader(name: str, frame: pd.DataFrame, cells: Sequence[object], image_src_type: ImageSrcType) -> _Text:
    if name in frame.columns:
        values = pick_column(frame, name).tolist()
        return lambda row: _text(values[row], name)
    return lambda row: file_names(cells[row], image_src_type)[name]


def _text(value: Any, name: str) -> str:
    if isinstance(value, list | tuple | np.ndarray | pd.Series):
        return ", ".join(_text(one, name) for one in value)
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, str):
        return plain
    if plain is None or plain is pd.NA or plain is pd.NaT or plain != plain:
        raise RowError("generate", f"The prompt's field {{{name}}} is missing in this row. Fill the column.")
    if isinstance(plain, float) and plain.is_integer():  # pandas makes floats of integers beside missing values
        return str(int(plain))
    if isinstance(plain, bool | int | float | pd.Timestamp):
        return str(plain)
    raise RowError(
        "generate",
        f"The prompt's field {{{name}}} is {printable(repr(value), 60)} of type {type(value).__name__}. Use texts, "
        "numbers or lists of these.",
    )
