"""Draw a scene as uint8 pixels (H, W, 3) of any size, and compute the box of every object."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ._signs import Sign, draw_sign
from ._world import Scene, Thing

#: Red, green and blue of every colour that an object or a background can have.
RGB = {
    "red": (220, 35, 35),
    "green": (35, 150, 60),
    "blue": (40, 70, 215),
    "yellow": (240, 220, 40),
    "orange": (245, 140, 25),
    "purple": (135, 50, 180),
    "pink": (250, 135, 190),
    "cyan": (50, 205, 225),
    "brown": (120, 70, 30),
    "white": (240, 240, 240),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "beige": (226, 208, 170),
}

_SMOOTH_SIDE = 320  # smaller images are drawn larger and averaged, for smooth edges
_RING_HOLE = 0.55
_CROSS_ARM = 1 / 3
_STAR_INNER = 0.45

Box = tuple[float, float, float, float]


def draw(scene: Scene, *, long_side: int | None = None) -> NDArray[np.uint8]:
    """Draw a scene.

    >>> from qwenvl_kit.demo.scenes import sample_scenes
    >>> draw(sample_scenes(1)[0], long_side=112).dtype
    dtype('uint8')

    Parameters
    ----------
    scene
        What to draw.
    long_side
        The longer side in pixels, 84 to 768 in training; default: `scene.long_side`.

    Returns
    -------
    numpy.ndarray
        uint8 (H, W, 3), RGB.
    """
    height, width = image_size(scene, long_side=long_side)
    scale = math.ceil(_SMOOTH_SIDE / max(height, width))
    canvas = Image.new("RGB", (width * scale, height * scale), _rgb(scene.background, scene.shift))
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        _draw_thing(pen, thing, _box(thing, height * scale, width * scale), _rgb(scene.background, scene.shift))
    for sign in scene.signs:
        draw_sign(pen, sign.number, _box(sign, height * scale, width * scale))
    return np.array(canvas.reduce(scale) if scale > 1 else canvas)


def image_size(scene: Scene, *, long_side: int | None = None) -> tuple[int, int]:
    """Return height and width in pixels of the image that `draw` returns."""
    side = long_side or scene.long_side
    if scene.aspect >= 1:
        return round(side / scene.aspect), side
    return side, round(side * scene.aspect)


def boxes(scene: Scene, *, height: int, width: int) -> list[Box]:
    """Return (left, top, right, bottom) of every object, in pixels of an image of this size."""
    return [_box(thing, height, width) for thing in scene.things]


def sign_boxes(scene: Scene, *, height: int, width: int) -> list[Box]:
    """Return (left, top, right, bottom) of every sign, in pixels of an image of this size."""
    return [_box(sign, height, width) for sign in scene.signs]


def _box(thing: Thing | Sign, height: int, width: int) -> Box:
    row, column = divmod(thing.cell, 3)
    center_x = (column + 0.5 + thing.offset[0]) * width / 3
    center_y = (row + 0.5 + thing.offset[1]) * height / 3
    radius = thing.extent * min(height, width) / 6
    return center_x - radius, center_y - radius, center_x + radius, center_y + radius


def _rgb(colour: str, shift: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, base + add)) for base, add in zip(RGB[colour], shift, strict=True))
    return red, green, blue


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, box: Box, background: tuple[int, int, int]) -> None:
    fill = _rgb(thing.colour, thing.shift)
    if thing.shape in ("circle", "ring"):
        pen.ellipse(box, fill=fill)
    else:
        left, top, right, bottom = box
        corners = _CORNERS[thing.shape]
        pen.polygon([(left + x * (right - left), top + y * (bottom - top)) for x, y in corners], fill=fill)
    if thing.shape == "ring":
        pen.ellipse(_shrunk(box, _RING_HOLE), fill=background)


def _shrunk(box: Box, factor: float) -> Box:
    left, top, right, bottom = box
    margin_x, margin_y = (right - left) * (1 - factor) / 2, (bottom - top) * (1 - factor) / 2
    return left + margin_x, top + margin_y, right - margin_x, bottom - margin_y


def _star() -> list[tuple[float, float]]:
    radii = [0.5 if corner % 2 == 0 else 0.5 * _STAR_INNER for corner in range(10)]
    angles = [math.pi * (corner / 5 - 0.5) for corner in range(10)]
    return [(0.5 + r * math.cos(a), 0.5 + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _heart() -> list[tuple[float, float]]:
    """Trace the curve x = 16 sin³t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled into the unit square."""
    points = []
    for step in range(40):
        t = 2 * math.pi * step / 40
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((0.5 + x / 33, 0.45 - y / 31))
    return points


def _cross() -> list[tuple[float, float]]:
    near, far = 0.5 - _CROSS_ARM / 2, 0.5 + _CROSS_ARM / 2
    return [
        *[(near, 0.0), (far, 0.0), (far, near), (1.0, near), (1.0, far), (far, far)],
        *[(far, 1.0), (near, 1.0), (near, far), (0.0, far), (0.0, near), (near, near)],
    ]


# Corners in the unit square, x to the right and y downwards.
_CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": [(0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94)],
    "triangle": [(0.5, 0.02), (1.0, 0.95), (0.0, 0.95)],
    "diamond": [(0.5, 0.0), (0.9, 0.5), (0.5, 1.0), (0.1, 0.5)],
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
}
