"""Find the columns of a frame by label; a label may be a tuple."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Hashable, Sequence
from typing import Any, cast

import pandas as pd

from qwenvl_kit.errors import ColumnNotFound, printable

_SHOWN_NAMES = 30
_LONGEST_NAME = 100
_COMPARED_NAMES = 1000


def has_column(frame: pd.DataFrame, label: object) -> bool:
    """Return whether `label` is the full label of a column, not a level above several."""
    return any(is_same_label(name, label) for name in frame.columns)


def pick_column(frame: pd.DataFrame, label: Hashable) -> pd.Series:
    """Return the column of a label.

    Raises
    ------
    ColumnNotFound
        No column or several columns have this label, or it is not hashable.
    """
    try:
        with warnings.catch_warnings():  # of unsorted columns, which the caller may have
            warnings.simplefilter("ignore", pd.errors.PerformanceWarning)
            is_known = label in frame.columns
    except TypeError as error:  # unhashable
        raise ColumnNotFound(
            f"{shown(label)} of type {type(label).__name__} is not a column label. Pass one label of the frame, which "
            f"has: {column_names(frame)}."
        ) from error
    if not is_known:
        raise ColumnNotFound(f"No column {shown(label)}. {_nearest(frame, label)}The frame has: {column_names(frame)}.")
    places = [at for at, name in enumerate(frame.columns) if is_same_label(name, label)]
    if len(places) == 1:
        return frame.iloc[:, places[0]]
    if places:
        raise ColumnNotFound(f"{len(places)} columns have the label {shown(label)}. Rename all but one.")
    raise ColumnNotFound(
        f"{shown(label)} is a level of the column labels. Pass a full label. The frame has: {column_names(frame)}."
    )


def pick_prompts(frame: pd.DataFrame, prompts: Any) -> Sequence[object] | pd.Series | None:
    """Return the prompts of a label, or `prompts` itself where it is a sequence of texts or None."""
    if prompts is None or isinstance(prompts, pd.Series):
        return prompts
    is_label = isinstance(prompts, tuple) and has_column(frame, prompts)
    if not is_label and (isinstance(prompts, list | tuple) or hasattr(prompts, "__array__")):
        return cast("Sequence[object]", prompts)
    return pick_column(frame, prompts)


def pick_labels(frame: pd.DataFrame, labels: Any) -> Any:
    """Return the column of a label, or `labels` itself where it is a list of texts, or of lists."""
    if isinstance(labels, list | pd.Series) or hasattr(labels, "__array__"):
        return labels
    is_texts = isinstance(labels, tuple) and not has_column(frame, labels)
    return labels if is_texts else pick_column(frame, labels)


def pick_question(frame: pd.DataFrame, question: Any) -> pd.Series | Sequence[object] | str:
    """Return the column of a label, the question itself, or the questions of a list, one per row.

    Raises
    ------
    ColumnNotFound
        `question` is a single word, or not a string, and no label of a column.
    """
    if isinstance(question, list):
        return question
    if not isinstance(question, Hashable) or question in frame.columns:
        return pick_column(frame, question)
    if not isinstance(question, str) or not question.strip() or (question.isascii() and question.isidentifier()):
        raise ColumnNotFound(
            f"{shown(question)} is neither a column nor a question. The frame has: {column_names(frame)}. "
            "A question has several words or ends with a punctuation mark."
        )
    return question


def labels_of(frame: pd.DataFrame, labels: Hashable | Sequence[Hashable]) -> list[Hashable]:
    """Return labels as a list; a tuple may be a single label."""
    if isinstance(labels, str | bytes) or has_column(frame, labels):
        return [labels]
    return list(labels) if isinstance(labels, Sequence | pd.Index) else [labels]


def column_names(frame: pd.DataFrame) -> str:
    """Return the column labels of a frame, for messages."""
    names = ", ".join(map(shown, frame.columns[:_SHOWN_NAMES])) or "no columns"
    n_more = frame.shape[1] - _SHOWN_NAMES
    return f"{names}, … and {n_more} more" if n_more > 0 else names


def _nearest(frame: pd.DataFrame, label: object) -> str:
    """Return a question with the label that a misspelt one resembles; empty where there is none."""
    names = [name for name in frame.columns[:_COMPARED_NAMES] if isinstance(name, str)]
    near = difflib.get_close_matches(label[:_LONGEST_NAME], names, n=1) if isinstance(label, str) else []
    return f"Did you mean {shown(near[0])}? " if near else ""


def shown(label: object) -> str:
    """Return a label for a message."""
    return printable(repr(label), _LONGEST_NAME)


def is_same_label(name: object, label: object) -> bool:
    """Return whether two labels are equal, also for types whose ``==`` raises."""
    try:
        return name is label or bool(name == label)
    except (TypeError, ValueError):  # pd.NA, and arrays
        return False
