"""Write and read objects as Label Studio's JSON (https://labelstud.io/guide/predictions)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from qwenvl_kit.boxes.files import (
    Files,
    base_name,
    corners,
    field,
    find_rows,
    name_images,
    number,
    number_or_nan,
    read_json,
    size_or_none,
)
from qwenvl_kit.boxes.frame import Kind, checked, kind_of, make_frame
from qwenvl_kit.errors import ConfigError

_TYPES: dict[Kind, str] = {"boxes": "rectanglelabels", "points": "keypointlabels"}
_DOT = 0.5  # width of a keypoint's dot, percent of the image


def to_label_studio(
    found: pd.DataFrame,
    *,
    files: Files | None = None,
    model_version: str = "qwenvl_kit",
    names: tuple[str, str] = ("label", "image"),
) -> list[dict[str, Any]]:
    """Return objects as Label Studio's tasks with predictions: a list for ``json.dump``.

    Parameters
    ----------
    found : DataFrame
        Boxes or points, with ``width`` and ``height`` of the image.
    files : Series or mapping, optional
        URL of each image by the label of its row, as Label Studio can read it; default: the label as text.
    model_version : str
        Name of the predictions.
    names : tuple of str
        Names of the labelling configuration's ``RectangleLabels`` (or ``KeyPointLabels``) and ``Image``; the latter is
        the field of a task's data as well.

    Returns
    -------
    list of dict
        A task per image, with one prediction; coordinates are percent of the image.

    Raises
    ------
    ConfigError
        The frame has other columns or values, or `files` lacks an image.

    Examples
    --------
    >>> found = pd.DataFrame({"row": ["a.jpg"], "label": "cat", "x0": 10, "y0": 20, "x1": 50, "y1": 60})
    >>> task = to_label_studio(found.assign(width=100, height=200))[0]
    >>> task["predictions"][0]["result"][0]["value"]
    {'x': 10.0, 'y': 10.0, 'width': 40.0, 'height': 20.0, 'rotation': 0, 'rectanglelabels': ['cat']}
    """
    kind, objects = kind_of(found, "found"), checked(found, "found", sized=True)
    images = name_images(found, files)
    results: dict[Any, list[dict[str, Any]]] = {label: [] for label in images}
    for at, one in enumerate(objects.to_dict("records")):
        results[one["row"]].append(_result(one, kind, at, names))
    return [
        {
            "data": {names[1]: name},
            "predictions": [{"model_version": model_version, **_mean_score(results[row]), "result": results[row]}],
        }
        for row, name in images.items()
    ]


def from_label_studio(
    source: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
    *,
    files: Files | None = None,
    kind: Kind = "boxes",
    image: str = "image",
) -> pd.DataFrame:
    """Return the objects of Label Studio's JSON export, such as a truth.

    Parameters
    ----------
    source : path or sequence of mapping
        A JSON file, or its tasks.
    files : Series or mapping, optional
        URL or file name of each image by the label of its row; other images are left out. A name is found as it
        stands, else by its last part where that is unique. Default: the task's own is the label.
    kind : {"boxes", "points"}
        Which regions are read: rectangles or keypoints; others are left out.
    image : str
        The field of a task's data with the image.

    Returns
    -------
    DataFrame
        As of ``df.vl.detect``. Of several annotations of a task, the one marked as ground truth is taken, else the
        first that was not cancelled; of a task without annotations, its first prediction. A region with several labels
        is an object for each.

    Raises
    ------
    ConfigError
        The JSON has another form, a rectangle is rotated, or none of the images is among `files`.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> found = pd.DataFrame({"row": ["a.jpg"], "label": "cat", "x0": 10, "y0": 20, "x1": 50, "y1": 60})
    >>> tasks = to_label_studio(found.assign(width=100, height=200))
    >>> from_label_studio(tasks)[["label", "x0", "y0", "x1", "y1"]].to_numpy().tolist()
    [['cat', 10.0, 20.0, 50.0, 60.0]]
    """
    tasks = read_json(source)
    if not isinstance(tasks, Sequence) or isinstance(tasks, str | bytes):
        raise ConfigError(f"Label Studio's JSON is a list of tasks; got {type(tasks).__name__}. Export it as JSON.")
    named = [
        (field(field(task, "data", Mapping, f"Task {at}"), image, str, f"The data of task {at}"), task)
        for at, task in enumerate(tasks)
    ]
    rows = find_rows([name for name, _ in named], files, key=base_name)
    objects = [
        {"row": rows[name], **one}
        for at, (name, task) in enumerate(named)
        if name in rows
        for result in _results(task)
        for one in _objects(result, kind, f"A region of task {at}")
    ]
    labels = list(dict.fromkeys(rows[name] for name, _ in named if name in rows))
    sizes = {one["row"]: {"width": one["width"], "height": one["height"]} for one in objects}
    no_size = {"width": None, "height": None}
    return make_frame(objects, pd.DataFrame([sizes.get(label, no_size) for label in labels], index=labels), kind)


def _result(one: Mapping[Any, Any], kind: Kind, at: int, names: tuple[str, str]) -> dict[str, Any]:
    width, height = one["width"], one["height"]
    x, y = (one["x0"], one["y0"]) if kind == "boxes" else (one["x"], one["y"])
    value = {"x": 100 * x / width, "y": 100 * y / height}
    if kind == "boxes":
        sides = {"width": 100 * (one["x1"] - x) / width, "height": 100 * (one["y1"] - y) / height}
        value |= {**sides, "rotation": 0}
    else:
        value |= {"width": _DOT}
    return {
        "id": f"object-{at}",
        "type": _TYPES[kind],
        "from_name": names[0],
        "to_name": names[1],
        "original_width": int(width),
        "original_height": int(height),
        "image_rotation": 0,
        "value": {**value, _TYPES[kind]: [one["label"]]},
        **({} if pd.isna(one["score"]) else {"score": one["score"]}),
    }


def _mean_score(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    scores = [result["score"] for result in results if "score" in result]
    return {"score": sum(scores) / len(scores)} if scores else {}


def _results(task: Mapping[str, Any]) -> list[Any]:
    done = [one for one in _list(task, "annotations") if not one.get("was_cancelled")]
    given = [one for one in done if one.get("ground_truth")] or done or _list(task, "predictions")
    results: list[Any] = field(given[0], "result", list, "An annotation") if given else []
    return results


def _list(task: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    given = field(task, name, list, "A task") if task.get(name) is not None else []
    return [field({name: one}, name, Mapping, "A task") for one in given]


def _objects(result: Mapping[str, Any], kind: Kind, where: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a region: one for each of its labels."""
    if field({"result": result}, "result", Mapping, where).get("type") != _TYPES[kind]:
        return
    value = field(result, "value", Mapping, where)
    if value.get("rotation"):
        raise ConfigError(
            f"{where} is rotated by {value['rotation']} degrees, and has no corners x0, y0, x1, y1. Replace it by an "
            "upright rectangle."
        )
    sides = ("original_width", "original_height")
    width, height = (field(size_or_none(result, sides, where), side, int, where) for side in ("width", "height"))
    x, y = number(value, "x", where) / 100 * width, number(value, "y", where) / 100 * height
    place = {"x": x, "y": y}
    if kind == "boxes":
        shares = number(value, "width", where) / 100, number(value, "height", where) / 100
        place = corners(x, y, shares[0] * width, shares[1] * height)
    score = number_or_nan(result, "score", where)
    for label in field(value, _TYPES[kind], list, where):
        name = field({"label": label}, "label", str, where)
        yield {"label": name, "score": score, "width": width, "height": height, **place}
