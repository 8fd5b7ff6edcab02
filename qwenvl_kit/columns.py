"""Find a frame's column by its label, which may be a tuple; what is no label of one column is said in words."""

from __future__ import annotations

import warnings
from collections.abc import Hashable

import pandas as pd

from qwenvl_kit.errors import ColumnNotFound, printable

_SHOWN_NAMES = 30
_LONGEST_NAME = 100


def has_column(frame: pd.DataFrame, label: object) -> bool:
    """Whether `label` is the whole label of a column, not a level above several."""
    return any(is_same_label(name, label) for name in frame.columns)


def pick_column(frame: pd.DataFrame, label: Hashable) -> pd.Series:
    """Return the one column of a label.

    Raises
    ------
    ColumnNotFound
        There is none or more than one, or `label` is none.
    """
    try:
        with warnings.catch_warnings():  # of columns that are not sorted, which is no fault of the caller's
            warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
            is_known = label in frame.columns
    except TypeError as error:  # unhashable
        raise ColumnNotFound(
            f"a column's label cannot be a {type(label).__name__}; got {shown(label)}; pass one label of the frame, "
            f"which has: {column_names(frame)}"
        ) from error
    if not is_known:
        raise ColumnNotFound(f"there is no column {shown(label)}; the frame has: {column_names(frame)}")
    places = [at for at, name in enumerate(frame.columns) if is_same_label(name, label)]
    if len(places) == 1:
        return frame.iloc[:, places[0]]
    if places:
        raise ColumnNotFound(f"column {shown(label)} stands {len(places)} times in the frame; rename one of them")
    raise ColumnNotFound(
        f"{shown(label)} is a level above columns, and not the label of one; pass a whole label; the frame has: "
        f"{column_names(frame)}"
    )


def column_names(frame: pd.DataFrame) -> str:
    """Return the labels of a frame's columns, for messages."""
    names = ", ".join(map(shown, frame.columns[:_SHOWN_NAMES])) or "no columns at all"
    n_more = frame.shape[1] - _SHOWN_NAMES
    return f"{names}, … and {n_more} more" if n_more > 0 else names


def shown(label: object) -> str:
    """Return a label for a message."""
    return printable(repr(label), _LONGEST_NAME)


def is_same_label(name: object, label: object) -> bool:
    """Whether two labels are the same, whatever their types make of ``==``."""
    try:
        return name is label or bool(name == label)
    except (TypeError, ValueError):  # pd.NA, and arrays
        return False
