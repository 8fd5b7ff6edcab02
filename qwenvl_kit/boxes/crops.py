"""Cut objects out of their images, in full resolution."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from qwenvl_kit._warnings import warn
from qwenvl_kit.boxes.frame import checked
from qwenvl_kit.errors import ConfigError, RowError, RowErrorWarning, printable
from qwenvl_kit.images import KeepSize
from qwenvl_kit.thumbnails import Thumbnailer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qwenvl_kit.options import FetchOptions


def crop_objects(cells: pd.Series, boxes: pd.DataFrame, margin: float, options: FetchOptions) -> pd.Series:
    """Return the objects of a frame of boxes as images; see ``df.vl.crop`` for arguments and errors."""
    objects = checked(boxes, kind="boxes")
    if not (isinstance(margin, int | float) and math.isfinite(margin) and margin >= 0):
        raise ConfigError(f"margin={margin!r} is invalid. Pass a share of the box's size of at least 0, such as 0.1.")
    if not cells.index.is_unique:
        raise ConfigError(
            "Boxes are matched by index label, but the index has labels twice. Call reset_index(drop=True)."
        )
    thumbnailer = Thumbnailer.of(options)
    crops: list[Image.Image | None] = [None] * len(objects)
    failures: list[str] = []
    cell_of = dict(zip(cells.index, cells.tolist(), strict=True))
    for row, places in _places(objects).items():
        try:
            pixels = _load(thumbnailer, row, cell_of)
        except RowError as error:
            failures.extend([f"row {row!r}: {error.message}"] * len(places))
            continue
        for at in places:
            cut = _cut(pixels, objects.iloc[at], margin)
            if isinstance(cut, str):
                failures.append(f"object {at}: {cut}")
            else:
                crops[at] = cut
    if failures:
        first = printable(failures[0], 500)
        warn(f"{len(failures)} of {len(objects)} objects were not cut out. First failure: {first}", RowErrorWarning)
    return pd.Series(crops, index=boxes.index, name="image", dtype=object)


def _places(objects: pd.DataFrame) -> dict[Hashable, list[int]]:
    places: dict[Hashable, list[int]] = {}
    for at, row in enumerate(objects["row"].tolist()):
        places.setdefault(row, []).append(at)
    return places


def _load(thumbnailer: Thumbnailer, row: Hashable, cells: Mapping[Hashable, object]) -> NDArray[np.uint8]:
    if row not in cells:
        raise RowError("fetch", "not in the index of this frame; the column row of boxes holds index labels.")
    source = thumbnailer.source(cells[row])
    if source is None:
        raise RowError("fetch", "no image.")
    return thumbnailer.pixels(source, KeepSize())


def _cut(pixels: NDArray[np.uint8], one: Any, margin: float) -> Image.Image | str:
    """Return every pixel that a box touches, or a sentence that says why there is none."""
    height, width = pixels.shape[:2]
    if not pd.isna(one["width"]) and (one["width"], one["height"]) != (width, height):
        return (
            f"coordinates are of an image of {one['width']:.0f}×{one['height']:.0f} pixels, but this has "
            f"{width}×{height}."
        )
    across, down = margin * (one["x1"] - one["x0"]), margin * (one["y1"] - one["y0"])
    x0, x1 = _pixels(one["x0"] - across, one["x1"] + across, width)
    y0, y1 = _pixels(one["y0"] - down, one["y1"] + down, height)
    if x0 >= x1 or y0 >= y1:
        return f"the box lies outside its image of {width}×{height} pixels."
    return Image.fromarray(pixels[y0:y1, x0:x1].copy())


def _pixels(start: float, end: float, n: int) -> tuple[int, int]:
    """Return the range of pixels that a side touches: at least one, within `n`."""
    first = math.floor(start)
    return max(0, first), min(n, max(math.ceil(end), first + 1))
