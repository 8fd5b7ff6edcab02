"""Hand boxes to supervision (https://supervision.roboflow.com), and take them from it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from qwenvl_kit.boxes.frame import checked, coordinates, label_order, make_frame, picture_labels
from qwenvl_kit.errors import ConfigError, MissingExtra

_NAMES = "class_name"  # supervision's own key in Detections.data


def to_supervision(found: pd.DataFrame, *, labels: Sequence[str] | None = None) -> dict[Hashable, Any]:
    """Return the boxes of each image as ``supervision.Detections``.

    Parameters
    ----------
    found : DataFrame
        Boxes as of ``df.vl.detect``.
    labels : sequence of str, optional
        The label of each class number; default: in order of appearance.

    Returns
    -------
    dict
        From the label of an image's row to its ``Detections``: ``xyxy``, ``confidence`` (None where no object of the
        image has a score), ``class_id``, and ``data["class_name"]``. Images without objects have empty ones, where the
        frame records them.

    Raises
    ------
    MissingExtra
        supervision is not installed.
    ConfigError
        The frame has other columns or values, or `labels` lacks a label.
    """
    try:
        import supervision
    except ImportError as error:
        raise MissingExtra("Detections of supervision", "boxes") from error
    objects = checked(found, "found", kind="boxes")
    classes = {label: at for at, label in enumerate(label_order(objects) if labels is None else labels)}
    missing = [label for label in label_order(objects) if label not in classes]
    if missing:
        raise ConfigError(f"labels has no {missing[0]!r}. Pass all labels of the frame.")
    by_row: dict[Hashable, pd.DataFrame] = dict(iter(objects.groupby("row", sort=False)))
    detections: dict[Hashable, Any] = {}
    for row in picture_labels(found):
        some = by_row.get(row, objects.head(0))
        names, scores = some["label"].tolist(), some["score"].to_numpy(np.float64)
        detections[row] = supervision.Detections(
            xyxy=coordinates(some),
            confidence=None if np.isnan(scores).all() else scores,
            class_id=np.array([classes[name] for name in names], int),
            data={_NAMES: np.array(names, dtype="str")},
        )
    return detections


def from_supervision(
    detections: Mapping[Hashable, Any], *, labels: Sequence[str] | None = None, sizes: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return the boxes of ``supervision.Detections``, such as a truth.

    Parameters
    ----------
    detections : mapping
        From the label of an image's row to its ``Detections``.
    labels : sequence of str, optional
        The label of each class number; default: ``data["class_name"]``.
    sizes : DataFrame, optional
        ``width`` and ``height`` of the images, under the rows' labels; drawing needs them.

    Returns
    -------
    DataFrame
        As of ``df.vl.detect``.

    Raises
    ------
    ConfigError
        An image's boxes have neither names nor `labels`.
    """
    index = pd.Index(list(detections), tupleize_cols=False)
    known = pd.DataFrame(index=index) if sizes is None else sizes[["width", "height"]].reindex(index)
    size_of: dict[Hashable, dict[str, Any]] = known.to_dict("index")  # type: ignore[assignment]
    objects: list[dict[str, Any]] = []
    for row, some in detections.items():
        names = _names(some, labels, row)
        scores = some.confidence if some.confidence is not None else np.full(len(names), np.nan)
        for name, score, (x0, y0, x1, y1) in zip(names, scores, some.xyxy, strict=True):
            objects.append(
                {"row": row, "label": name, "score": score, "x0": x0, "y0": y0, "x1": x1, "y1": y1, **size_of[row]}
            )
    return make_frame(objects, known, "boxes")


def _names(detections: Any, labels: Sequence[str] | None, row: Hashable) -> list[str]:
    n_objects = len(detections.xyxy)
    if labels is not None and (detections.class_id is not None or not n_objects):
        return [labels[int(at)] for at in (detections.class_id if n_objects else ())]
    if _NAMES in detections.data or not n_objects:
        return [str(name) for name in detections.data.get(_NAMES, ())]
    raise ConfigError(f"The boxes of row {row!r} have no names. Pass labels=, the label of each class number.")
