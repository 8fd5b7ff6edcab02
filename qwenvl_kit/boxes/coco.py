"""Write and read objects as COCO JSON (https://cocodataset.org/#format-data)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import pandas as pd

from qwenvl_kit._warnings import warn
from qwenvl_kit.boxes.files import (
    Files,
    base_name,
    corners,
    field,
    find_rows,
    image_sizes,
    name_images,
    number,
    number_or_nan,
    read_json,
    size_or_none,
)
from qwenvl_kit.boxes.frame import Kind, checked, kind_of, label_order, make_frame
from qwenvl_kit.errors import ConfigError, QwenVLWarning


def to_coco(found: pd.DataFrame, *, files: Files | None = None) -> dict[str, Any]:
    """Return objects as COCO's data set: a dict for ``json.dump``.

    Parameters
    ----------
    found : DataFrame
        Boxes or points, as of ``df.vl.detect`` and ``df.vl.point``.
    files : Series or mapping, optional
        File name of each image by the label of its row; default: the label as text.

    Returns
    -------
    dict
        ``images`` (also without objects, where the frame records them), ``annotations`` with ``bbox`` as
        ``[x, y, width, height]`` in pixels and ``score`` where it is known, and ``categories`` in order of appearance.
        A point is one visible keypoint with a box of no area.

    Raises
    ------
    ConfigError
        The frame has other columns or values, or `files` lacks an image.

    Examples
    --------
    >>> found = pd.DataFrame({"row": ["a.jpg"], "label": "cat", "x0": 10, "y0": 20, "x1": 50, "y1": 60, "score": 0.9})
    >>> to_coco(found)["annotations"][0]["bbox"]
    [10.0, 20.0, 40.0, 40.0]
    """
    kind, objects = kind_of(found, "found"), checked(found, "found")
    names, sizes = name_images(found, files), image_sizes(found, objects)
    categories = {label: at for at, label in enumerate(label_order(objects), start=1)}
    images = {label: at for at, label in enumerate(names, start=1)}
    annotations = [
        {
            "id": at,
            "image_id": images[one["row"]],
            "category_id": categories[one["label"]],
            **_shape(one, kind),
            "iscrowd": 0,
            **({} if pd.isna(one["score"]) else {"score": one["score"]}),
        }
        for at, one in enumerate(objects.to_dict("records"), start=1)
    ]
    extra = {"keypoints": ["point"], "skeleton": []} if kind == "points" else {}
    return {
        "images": [{"id": at, "file_name": names[label], **_size(sizes.get(label))} for label, at in images.items()],
        "annotations": annotations,
        "categories": [{"id": at, "name": label, **extra} for label, at in categories.items()],
    }


def from_coco(
    source: str | os.PathLike[str] | Mapping[str, Any], *, files: Files | None = None, kind: Kind = "boxes"
) -> pd.DataFrame:
    """Return the objects of a COCO data set, such as a truth.

    Parameters
    ----------
    source : path or mapping
        A JSON file, or what it holds.
    files : Series or mapping, optional
        File name of each image by the label of its row, such as ``df["image"]``; other images are left out. A name
        is found as it stands, else by its last part where that is unique. Default: the file name is the label.
    kind : {"boxes", "points"}
        Points are the first keypoint of each annotation.

    Returns
    -------
    DataFrame
        As of ``df.vl.detect``. Regions of crowds (``iscrowd``) are left out, with a warning.

    Raises
    ------
    ConfigError
        The JSON has another form, or none of its images is among `files`.
    OSError
        The file cannot be read.

    Examples
    --------
    >>> found = pd.DataFrame({"row": ["a.jpg"], "label": "cat", "x0": 10, "y0": 20, "x1": 50, "y1": 60})
    >>> from_coco(to_coco(found))[["row", "label", "x0", "y0", "x1", "y1"]].to_numpy().tolist()
    [['a.jpg', 'cat', 10.0, 20.0, 50.0, 60.0]]
    """
    data = read_json(source)
    images = {field(one, "id", (int, str), "An image"): one for one in field(data, "images", list, "COCO JSON")}
    names = {id: field(one, "file_name", str, f"Image {id}") for id, one in images.items()}
    labels = {
        field(one, "id", (int, str), "A category"): field(one, "name", str, "A category")
        for one in field(data, "categories", list, "COCO JSON")
    }
    rows = find_rows(list(names.values()), files, key=base_name)
    kept = {id: rows[name] for id, name in names.items() if name in rows}
    sizes = {id: size_or_none(images[id], ("width", "height"), f"Image {id}") for id in kept}
    objects, n_crowds = [], 0
    for one in field(data, "annotations", list, "COCO JSON"):
        where = f"Annotation {one.get('id') if isinstance(one, Mapping) else one!r}"
        if field(one, "image_id", (int, str), where) not in kept:
            continue
        if one.get("iscrowd"):
            n_crowds += 1
            continue
        if (category := field(one, "category_id", (int, str), where)) not in labels:
            raise ConfigError(f"{where} has category_id={category!r}, which is not among the categories.")
        id, score = one["image_id"], number_or_nan(one, "score", where)
        place = {"row": kept[id], "label": labels[category], "score": score, **sizes[id]}
        objects.append({**place, **_coordinates(one, kind, where)})
    if n_crowds:
        warn(f"{n_crowds} regions of crowds were left out, which are no single objects.", QwenVLWarning)
    return make_frame(objects, pd.DataFrame([sizes[id] for id in kept], index=list(kept.values())), kind)


def _shape(one: Mapping[Any, Any], kind: Kind) -> dict[str, Any]:
    if kind == "points":
        x, y = one["x"], one["y"]
        return {"bbox": [x, y, 0.0, 0.0], "area": 0.0, "keypoints": [x, y, 2], "num_keypoints": 1}
    width, height = one["x1"] - one["x0"], one["y1"] - one["y0"]
    return {"bbox": [one["x0"], one["y0"], width, height], "area": width * height}


def _coordinates(one: Mapping[str, Any], kind: Kind, where: str) -> dict[str, float]:
    name, parts = ("bbox", 4) if kind == "boxes" else ("keypoints", 3)
    values = field(one, name, list, where)
    if len(values) < parts:
        raise ConfigError(f"{where} has {name}={values!r}. It must be {parts} numbers.")
    numbers = [number({name: value}, name, where) for value in values[:parts]]
    if kind == "points":
        return {"x": numbers[0], "y": numbers[1]}
    return corners(*numbers)


def _size(size: tuple[int, int] | None) -> dict[str, int]:
    return {} if size is None else {"width": size[0], "height": size[1]}
