"""Images with one white box, turned and resized in every way: where the box is, and where it comes back to."""

from __future__ import annotations

import io
import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from qwenvl_kit import Config
from qwenvl_kit.errors import RowError
from qwenvl_kit.images import ImageLoader, Sizing, classify
from qwenvl_kit.tasks.boxes import Coordinates, Size, coordinate_system
from qwenvl_kit.tasks.grounding import find_objects
from qwenvl_kit.types import LoadedImage, PatchGeometry

TURNS = {  # what makes a stored image of an upright one, by its EXIF orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
SETTINGS = ("none", "height", "width", "both")
SYSTEM = coordinate_system("qwen2_5_vl")
_MOST = 1_000_000  # pixels of an input


@dataclass(frozen=True)
class Case:
    """An image with a box, and how it is turned and resized.

    Attributes
    ----------
    size : tuple of int
        Upright ``(height, width)``.
    box : tuple of float
        Of whole pixels.
    turn : int
        EXIF orientation.
    options : dict
        Of sizes.
    form : str
        File format.
    """

    size: Size
    box: Coordinates
    turn: int
    options: dict[str, Any]
    form: str


def draw_case(draws: random.Random) -> Case:
    """Return a case: one in four is a needle, one in four is below the least size."""
    height, width = _size(draws)
    x0, x1 = sorted(draws.sample(range(width + 1), 2))
    y0, y1 = sorted(draws.sample(range(height + 1), 2))
    return Case(
        (height, width),
        (float(x0), float(y0), float(x1), float(y1)),
        draws.choice(list(TURNS)),
        _options(draws),
        draws.choice(["PNG", "JPEG"]),
    )


def load(case: Case) -> LoadedImage | None:
    """Return the image as a model sees it; None where its sides are further apart than the family allows."""
    config = Config(**case.options)
    (source,) = classify(encoded(case), config.image_src_type)
    try:
        return ImageLoader.of(config, Sizing.of(config, PatchGeometry())).load(source)
    except RowError as error:
        if error.stage != "resize":
            raise
        return None


def encoded(case: Case) -> bytes:
    """Return the file: a white box on black, stored as its turn demands."""
    pixels = np.zeros((*case.size, 3), np.uint8)
    x0, y0, x1, y1 = map(int, case.box)
    pixels[y0:y1, x0:x1] = 255
    image, turn = Image.fromarray(pixels), TURNS[case.turn]
    exif = Image.Exif()
    exif[0x0112] = case.turn
    buffer = io.BytesIO()
    (image if turn is None else image.transpose(turn)).save(
        buffer, case.form, exif=exif, **({"quality": 95, "subsampling": 0} if case.form == "JPEG" else {})
    )
    return buffer.getvalue()


def exact_answer(case: Case, image: LoadedImage) -> str:
    """Return the answer of a model that maps the box exactly, to whole pixels of its input."""
    (height, width), (shown_height, shown_width) = case.size, image.size
    x0, y0, x1, y1 = case.box
    across, down = shown_width / width, shown_height / height
    numbers = (x0 * across, y0 * down, x1 * across, y1 * down)
    return f'[{{"bbox_2d": {[math.floor(one + 0.5) for one in numbers]}, "label": "box"}}]'


def seen_answer(image: LoadedImage) -> str | None:
    """Return the answer of a model that sees exactly which pixels of its input are white; None where none is."""
    ys, xs = np.nonzero(image.pixels[..., 1] >= 128)
    if not len(xs):
        return None
    return f'[{{"bbox_2d": {[int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]}}}]'


@dataclass(frozen=True)
class Error:
    """How far from its place a box comes back, in pixels of the model's input, and of whichever image has larger."""

    in_input: float
    in_larger: float


def error_of(case: Case, image: LoadedImage, answer: str) -> Error | None:
    """Return how far from its place the box of an answer comes back; None where it is unread."""
    found = find_objects(answer, "box", SYSTEM, image.size, image.source_size)
    if not found.objects:
        return None
    (height, width), (shown_height, shown_width) = case.size, image.size
    scales = (shown_width / width, shown_height / height) * 2
    (one,) = found.objects
    assert all(0 <= at <= most for at, most in zip(one.coordinates, (width, height) * 2, strict=True))
    off = [(abs(at - true), scale) for at, true, scale in zip(one.coordinates, case.box, scales, strict=True)]
    return Error(max(far * scale for far, scale in off), max(far * min(1, scale) for far, scale in off))


def least_side(case: Case, image: LoadedImage) -> float:
    """Return the shorter side of the box in pixels of the model's input."""
    x0, y0, x1, y1 = case.box
    return min((x1 - x0) * image.size[1] / case.size[1], (y1 - y0) * image.size[0] / case.size[0])


def _size(draws: random.Random) -> Size:
    kind = draws.random()
    if kind < 0.25:  # a needle
        short = draws.randint(1, 12)
        size = short, min(2_400, draws.randint(20, 210) * short)
        return size if draws.random() < 0.5 else size[::-1]
    if kind < 0.5:  # below the least size of 56 × 56 pixels
        return draws.randint(1, 55), draws.randint(1, 55)
    return draws.randint(28, 900), draws.randint(28, 900)


def _options(draws: random.Random) -> dict[str, Any]:
    setting = draws.choice(SETTINGS)
    options: dict[str, Any] = {
        "max_pixels": draws.choice([_MOST, draws.randint(3_136, _MOST)]),
        "image_decode": draws.choice(["exact", "draft"]),
    }
    if draws.random() < 0.5:
        options["min_pixels"] = draws.randint(784, options["max_pixels"])
    if setting in ("height", "both"):
        options["resized_height"] = draws.randint(1, 1_200)
    if setting in ("width", "both"):
        options["resized_width"] = draws.randint(1, 1_200)
    return options
