"""Check frames of boxes or points, a row per object, and read what they say of each image.

The form is that of ``df.vl.detect`` and ``df.vl.point``; a truth needs ``row``, ``label`` and the coordinates only.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from qwenvl_kit.columns import column_names
from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["boxes", "points"]
COORDINATES: dict[Kind, list[str]] = {"boxes": ["x0", "y0", "x1", "y1"], "points": ["x", "y"]}
TWICE = "Boxes are matched by index label, but the index has labels twice. Call reset_index(drop=True) first."
_PICTURES = "rows"  # in attrs


def kind_of(frame: pd.DataFrame, name: str = "boxes") -> Kind:
    """Return whether a frame has boxes or points.

    Raises
    ------
    ConfigError
        It is no frame, or has the columns of neither.

    Examples
    --------
    >>> kind_of(pd.DataFrame({"row": [0], "label": ["cat"], "x": [4.0], "y": [3.0]}))
    'points'
    """
    if not isinstance(frame, pd.DataFrame):
        raise ConfigError(
            f"{name} is a {type(frame).__name__}. Pass a frame with a row per object, as df.vl.detect gives."
        )
    for kind, columns in COORDINATES.items():
        if {"row", "label", *columns} <= set(frame.columns):
            return kind
    raise ConfigError(
        f"{name} needs the columns row, label, and x0, y0, x1, y1 or x, y. It has: {column_names(frame)}."
    )


def checked(frame: pd.DataFrame, name: str = "boxes", *, kind: Kind | None = None, sized: bool = False) -> pd.DataFrame:
    """Return the objects of a frame: ``row``, ``label``, coordinates, ``score``, ``width`` and ``height``.

    Parameters
    ----------
    frame : DataFrame
        A row per object; ``score`` may be missing, and so may ``width`` and ``height`` of the image.
    name : str
        For messages.
    kind : {"boxes", "points"}, optional
        The only one allowed.
    sized : bool
        Width and height are needed.

    Returns
    -------
    DataFrame
        In the order of the frame, under a RangeIndex: labels are text, all numbers float64, missing ones NaN.

    Raises
    ------
    ConfigError
        Columns are missing, a coordinate is no finite number, corners are out of order, or a size is missing.
    """
    found = kind_of(frame, name)
    if kind is not None and found != kind:
        raise ConfigError(f"{name} has {found}. Pass a frame of {kind}.")
    columns = COORDINATES[found]
    objects = pd.DataFrame({"row": frame["row"].array, "label": frame["label"].astype(str).array})
    for column in (*columns, "score", "width", "height"):
        objects[column] = _numbers(frame, column, name)
    _check_coordinates(objects, columns, name)
    if sized and not (objects[["width", "height"]] > 0).all(axis=None):
        raise ConfigError(
            f"{name} needs width and height of each object's image, in pixels. Add them as columns; "
            "df.vl.detect gives both."
        )
    return objects


def coordinates(objects: pd.DataFrame) -> NDArray[np.float64]:
    """Return the coordinates of checked objects: float64 (n, 4) of boxes, (n, 2) of points."""
    found: NDArray[np.float64] = objects[COORDINATES[kind_of(objects)]].to_numpy(np.float64)
    return found


def make_frame(objects: Iterable[Mapping[str, Any]], pictures: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    """Return the frame of objects that were read from a file, with a record of all its images.

    Parameters
    ----------
    objects : iterable of mapping
        ``row``, ``label`` and coordinates; ``score``, ``width`` and ``height`` may be missing.
    pictures : DataFrame
        Indexed by the labels of images, also of those without objects; ``width`` and ``height`` where known.
    kind : {"boxes", "points"}
        Which coordinates the objects have.

    Raises
    ------
    ConfigError
        A coordinate is no finite number, or corners are out of order.
    """
    columns = COORDINATES[kind]
    given = list(objects)
    frame = pd.DataFrame(
        {
            "row": _labels([one["row"] for one in given]),
            "label": pd.Series([str(one["label"]) for one in given], dtype="str"),
            **{name: np.array([one[name] for one in given], np.float64) for name in columns},
            "score": np.array([one.get("score", np.nan) for one in given], np.float64),
            "text": pd.Series([""] * len(given), dtype="str"),
            "clipped": np.zeros(len(given), bool),
            **{name: pd.array([one.get(name) for one in given], dtype="Int64") for name in ("width", "height")},
        }
    )
    _check_coordinates(frame, columns, "the file")
    n_objects = frame.groupby("row", sort=False).size()
    frame.attrs[_PICTURES] = pictures_record(
        pictures.assign(status="ok", n_objects=[int(n_objects.get(row, 0)) for row in pictures.index])
    )
    return frame


def pictures_record(pictures: pd.DataFrame) -> dict[str, list[Any]]:
    """Return the frame of images as plain lists for ``attrs``.

    pandas compares the attrs of frames that it concatenates, which raises for a DataFrame in them, and writes them to
    Parquet as JSON.
    """
    return {"row": pictures.index.tolist(), **{str(name): column.tolist() for name, column in pictures.items()}}


def pictures(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what a frame of objects says of each image, also of images without objects.

    Returns
    -------
    DataFrame
        Indexed by the label of the image's row: ``status``, ``n_objects`` and what else the frame's ``attrs`` hold.
        Where they hold nothing, as for a frame made by hand, the images that have objects.

    Examples
    --------
    >>> found = pd.DataFrame({"row": ["a", "a", "b"], "label": "cat", "x": 1.0, "y": 2.0})
    >>> pictures(found)["n_objects"].to_dict()
    {'a': 2, 'b': 1}
    """
    record = frame.attrs.get(_PICTURES)
    if isinstance(record, pd.DataFrame):
        return record
    if isinstance(record, Mapping):
        columns = {name: values for name, values in record.items() if name != "row"}
        return pd.DataFrame(columns, index=_labels(record["row"]))
    counts = frame.groupby("row", sort=False).size()
    return pd.DataFrame({"status": "ok", "n_objects": counts.to_numpy()}, index=_labels(counts.index.tolist()))


def has_record(frame: pd.DataFrame) -> bool:
    """Return whether a frame of objects records its images, also those without objects."""
    return frame.attrs.get(_PICTURES) is not None


def picture_labels(*frames: pd.DataFrame) -> list[Hashable]:
    """Return the labels of all images of some frames, in order, each once."""
    labels: dict[Hashable, None] = {}
    for frame in frames:
        labels.update(dict.fromkeys(pictures(frame).index.tolist()))
        labels.update(dict.fromkeys(frame["row"].tolist()))
    return list(labels)


def label_order(objects: pd.DataFrame) -> list[str]:
    """Return the labels of objects in the order of their first appearance."""
    return list(dict.fromkeys(objects["label"].tolist()))


def _labels(labels: list[Any]) -> pd.Index:
    """Return an index of labels; a tuple stays one label."""
    index: pd.Index = pd.Index(labels, tupleize_cols=False)
    return index


def _numbers(frame: pd.DataFrame, column: str, name: str) -> NDArray[np.float64]:
    if column not in frame.columns:
        return np.full(len(frame), np.nan)
    try:
        return np.asarray(frame[column].astype("Float64").to_numpy(np.float64, na_value=np.nan), np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Column {column!r} of {name} has values that are no numbers. Pass numbers.") from error


def _check_coordinates(objects: pd.DataFrame, columns: list[str], name: str) -> None:
    values = objects[columns].to_numpy()
    if not np.isfinite(values).all():
        at = int(np.argmin(np.isfinite(values).all(axis=1)))
        raise ConfigError(f"Object {at} of {name} has the coordinates {_shown(values[at])}. They must be finite.")
    if len(columns) == 4 and (values[:, :2] > values[:, 2:]).any():
        at = int(np.argmax((values[:, :2] > values[:, 2:]).any(axis=1)))
        raise ConfigError(
            f"Object {at} of {name} has the corners {_shown(values[at])}. x0 must be at most x1, and y0 at most y1."
        )


def _shown(values: NDArray[np.float64]) -> str:
    return ", ".join(f"{value:g}" for value in values)
