"""Map boxes and points of an answer to the upright original image, and clip them to it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

from qwenvl_kit.errors import ConfigError

Size = tuple[int, int]
"""``(height, width)`` in pixels."""

Coordinates = tuple[float, ...]
"""``(x0, y0, x1, y1)`` of a box or ``(x, y)`` of a point; x goes right and y down from the image's top left corner."""

CoordinateSystem = Callable[[Coordinates, Size, Size], Coordinates]
"""From coordinates of an answer, the size of the model's input and that of the original to pixels of the original."""


def from_input_pixels(coordinates: Coordinates, input_size: Size, source_size: Size) -> Coordinates:
    """Return absolute pixels of a model's input as pixels of the original.

    Resizing keeps edges on edges, and height and width have a scale each: the model's input has other proportions than
    the original.

    Examples
    --------
    >>> from_input_pixels((322, 238, 644, 476), (476, 644), (480, 640))
    (320.0, 240.0, 640.0, 480.0)
    """
    scales = cycle(zip(source_size[::-1], input_size[::-1], strict=True))
    return tuple(value * source / shown for value, (source, shown) in zip(coordinates, scales, strict=False))


_SYSTEMS: dict[str, CoordinateSystem] = {
    "qwen2_5_vl": from_input_pixels,  # https://github.com/QwenLM/Qwen2.5-VL/blob/main/cookbooks/spatial_understanding.ipynb
}


def coordinate_system(family: str) -> CoordinateSystem:
    """Return how the answers of a family of models name places in an image.

    Parameters
    ----------
    family : str
        The ``model_type`` of the checkpoint's config.

    Raises
    ------
    ConfigError
        The coordinates of this family are not known.
    """
    if family not in _SYSTEMS:
        raise ConfigError(
            f"Coordinates in answers of the model family {family!r} are not known. Supported: {', '.join(_SYSTEMS)}. "
            "Pass a model of such a family."
        )
    return _SYSTEMS[family]


def clip_box(box: Coordinates, size: Size) -> tuple[Coordinates, bool] | None:
    """Return the part of a box within an image, and whether the box was changed; None where no area is left.

    Parameters
    ----------
    box : tuple of float
        Any two opposite corners.
    size : tuple of int
        ``(height, width)`` of the image.

    Returns
    -------
    box : tuple of float
        ``x0 < x1`` and ``y0 < y1``.
    is_changed : bool
        It was clipped, or its corners were put in order.

    Examples
    --------
    >>> clip_box((50.0, 40.0, 10.0, 20.0), (480, 640))
    ((10.0, 20.0, 50.0, 40.0), True)
    >>> clip_box((700.0, 10.0, 800.0, 20.0), (480, 640)) is None
    True
    """
    height, width = size
    (x0, x1), (y0, y1) = sorted(box[0::2]), sorted(box[1::2])
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        return None
    return clipped, clipped != box


def clip_point(point: Coordinates, size: Size) -> tuple[Coordinates, bool] | None:
    """Return a point as it is, which is unchanged; None where it is outside the image.

    Examples
    --------
    >>> clip_point((10.0, 20.0), (480, 640))
    ((10.0, 20.0), False)
    >>> clip_point((-1.0, 20.0), (480, 640)) is None
    True
    """
    height, width = size
    return (point, False) if 0 <= point[0] <= width and 0 <= point[1] <= height else None
