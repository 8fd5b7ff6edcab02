"""Write and read boxes as YOLO's text files (https://docs.ultralytics.com/datasets/detect/)."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from qwenvl_kit.boxes.files import Files, check_distinct, find_rows, name_images, stem
from qwenvl_kit.boxes.frame import checked, label_order, make_frame
from qwenvl_kit.errors import ConfigError, printable

_SCORED = 6  # numbers of a line: class, centre, size and score


@dataclass(frozen=True, slots=True)
class YoloLabels:
    """What `to_yolo` returns.

    Attributes
    ----------
    labels : tuple of str
        The label of each class number.
    texts : dict
        From the stem of an image's file to the text of its label file; empty without objects.
    """

    labels: tuple[str, ...]
    texts: dict[str, str]

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``<stem>.txt`` for each image and ``classes.txt`` to a folder, and return it.

        Raises
        ------
        OSError
            It cannot be written.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        for name, text in {**self.texts, "classes": "".join(f"{label}\n" for label in self.labels)}.items():
            (place / f"{name}.txt").write_text(text, encoding="utf-8")
        return place


def to_yolo(
    found: pd.DataFrame, *, labels: Sequence[str] | None = None, files: Files | None = None, scores: bool = False
) -> YoloLabels:
    r"""Return boxes as YOLO's label files: ``class x y width height``, centre and size as shares of the image.

    Parameters
    ----------
    found : DataFrame
        Boxes as of ``df.vl.detect``, with ``width`` and ``height`` of the image.
    labels : sequence of str, optional
        The label of each class number; default: in order of appearance.
    files : Series or mapping, optional
        File name of each image by the label of its row; default: the label as text.
    scores : bool
        Write the score as the sixth number, where it is known.

    Returns
    -------
    YoloLabels
        Numbers have six digits after the point: 0.004 pixels of 4,000.

    Raises
    ------
    ConfigError
        The frame has other columns or values, a box is partly out of its image, `labels` lacks a label, or two images
        have one name.

    Examples
    --------
    >>> found = pd.DataFrame({"row": ["a.jpg"], "label": "cat", "x0": 10, "y0": 20, "x1": 50, "y1": 60})
    >>> to_yolo(found.assign(width=100, height=200)).texts
    {'a': '0 0.300000 0.200000 0.400000 0.200000\n'}
    """
    objects = checked(found, "found", kind="boxes", sized=True)
    known = tuple(label_order(objects) if labels is None else labels)
    classes = {label: at for at, label in enumerate(known)}
    missing = [label for label in label_order(objects) if label not in classes]
    if missing:
        raise ConfigError(f"labels has no {printable(repr(missing[0]), 100)}. Pass all labels of the frame.")
    stems = {label: stem(name) for label, name in name_images(found, files).items()}
    check_distinct(stems, "name without suffix")
    texts = dict.fromkeys(stems.values(), "")
    for one in objects.to_dict("records"):
        texts[stems[one["row"]]] += _line(one, classes[one["label"]], scores)
    return YoloLabels(known, texts)


def from_yolo(
    source: str | os.PathLike[str] | Mapping[str, str],
    labels: Sequence[str],
    sizes: pd.DataFrame | Mapping[str, tuple[int, int]],
    *,
    files: Files | None = None,
) -> pd.DataFrame:
    """Return the boxes of YOLO's label files, such as a truth.

    Parameters
    ----------
    source : path or mapping
        A folder of ``<stem>.txt``, or the texts by stem. ``classes.txt`` is left out.
    labels : sequence of str
        The label of each class number.
    sizes : DataFrame or mapping
        ``width`` and ``height`` of each image: a frame under the rows' labels, or a mapping from stems to both. Images
        without a text have no objects; texts without a size are left out.
    files : Series or mapping, optional
        File name of each image by the label of its row, such as ``df["image"]``; default: the stem is the label.

    Returns
    -------
    DataFrame
        As of ``df.vl.detect``; a sixth number is the score.

    Raises
    ------
    ConfigError
        A line has another form or an unknown class, or no text belongs to an image.
    OSError
        The folder cannot be read.

    Examples
    --------
    >>> from_yolo({"a": "0 0.3 0.2 0.4 0.2"}, ["cat"], {"a": (100, 200)})[["x0", "y0", "x1", "y1"]].round(6).values
    array([[10., 20., 50., 60.]])
    """
    texts = source if isinstance(source, Mapping) else _read(Path(source))
    rows = find_rows(list(texts), files, key=stem)
    pairs = (
        sizes[["width", "height"]].itertuples(name=None)
        if isinstance(sizes, pd.DataFrame)
        else [(name, *size) for name, size in sizes.items()]
    )
    known: dict[Hashable, tuple[int, int]] = {label: (int(width), int(height)) for label, width, height in pairs}
    if texts and not any(row in known for row in rows.values()):
        raise ConfigError("sizes has none of the images. Index it by the rows' labels; by default, the files' stems.")
    objects = [
        _object(line, labels, f"Line {number} of {name}.txt") | {"row": rows[name]}
        for name, text in texts.items()
        if rows.get(name) in known
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip()
    ]
    placed = [_in_pixels(one, *known[one["row"]]) for one in objects]
    images = pd.DataFrame(list(known.values()), columns=["width", "height"], index=list(known))
    return make_frame(placed, images, "boxes")


def _line(one: Mapping[Any, Any], at: int, scores: bool) -> str:
    width, height = one["width"], one["height"]
    if min(one["x0"], one["y0"]) < 0 or one["x1"] > width or one["y1"] > height:
        raise ConfigError(
            f"A box of row {printable(repr(one['row']), 100)} is partly out of its {width:.0f}×{height:.0f} image. "
            "Clip it, for YOLO's numbers are shares of the image."
        )
    numbers = [
        (one["x0"] + one["x1"]) / 2 / width,
        (one["y0"] + one["y1"]) / 2 / height,
        (one["x1"] - one["x0"]) / width,
        (one["y1"] - one["y0"]) / height,
        *([one["score"]] if scores and not pd.isna(one["score"]) else []),
    ]
    return f"{at} {' '.join(f'{number:.6f}' for number in numbers)}\n"


def _read(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise ConfigError(f"{printable(str(folder), 200)} is no folder. Pass the folder of the label files.")
    found = sorted(path for path in folder.glob("*.txt") if path.name != "classes.txt")
    return {path.stem: path.read_text(encoding="utf-8") for path in found}


def _object(line: str, labels: Sequence[str], where: str) -> dict[str, Any]:
    try:
        number, *values = [float(part) for part in line.split()]
    except ValueError as error:
        raise ConfigError(f"{where} is no numbers: {printable(line, 100)!r}.") from error
    if len(values) not in (_SCORED - 2, _SCORED - 1):
        raise ConfigError(
            f"{where} has {len(values) + 1} numbers. A box has 5, or 6 with its score; polygons and poses are not read."
        )
    if not number.is_integer() or not 0 <= number < len(labels):
        raise ConfigError(
            f"{where} has the class {number:g}, but labels has {len(labels)}. Pass a label for each class."
        )
    x, y, width, height = values[:4]
    score = values[4] if len(values) == _SCORED - 1 else float("nan")
    corners = {"x0": x - width / 2, "y0": y - height / 2, "x1": x + width / 2, "y1": y + height / 2}
    return {"label": labels[int(number)], "score": score, **corners}


def _in_pixels(one: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    scaled = {name: one[name] * (width if name[0] == "x" else height) for name in ("x0", "y0", "x1", "y1")}
    return {**one, **scaled, "width": width, "height": height}
