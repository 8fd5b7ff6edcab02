"""Resize a large image in bands and over itself, so that no second image of its size is in memory.

Pillow takes 4 bytes for a pixel of RGB, 341 MiB for the 89 megapixels that are allowed. What its first of two passes
gives for 3584×3584 pixels would be 97 MiB beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from qwenvl_kit.images.rgb import band_boxes, crop_upright, paste_upright, resize_to, upright_bands, upright_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwenvl_kit.images.rgb import Box

_HOLDS_RGB = ("RGB", "RGBA", "CMYK")  # RGB comes out of these modes as it went in
_HOLDS_GREY = ("L", "LA")  # and grey out of these


def resize_in_bands(image: Image.Image, orientation: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Turn a loaded image upright, make it RGB and resize it, equal to Pillow bit for bit; close the image.

    Pillow resizes columns before rows where the height shrinks by more than twice as many pixels as the width, else
    rows before columns: https://github.com/python-pillow/Pillow/blob/13.0.0/src/libImaging/Resample.c

    Parameters
    ----------
    image : PIL.Image.Image
        Of any mode; its pixels are overwritten.
    orientation : int
        Of its EXIF.
    size : tuple of int
        ``(height, width)`` of the result.

    Returns
    -------
    uint8 array (size[0], size[1], 3)
        Alpha is laid over white.
    """
    height, width = upright_size(image, orientation)
    columns_first = height - size[0] > max(0, 2 * (width - size[1]))
    halfway = (size[0], width) if columns_first else (height, size[1])
    is_over_itself = image.mode in _HOLDS_RGB + _HOLDS_GREY and halfway[0] <= height and halfway[1] <= width
    between = _Over(image, orientation) if is_over_itself else _Beside(halfway)
    _resize_lines(upright_bands(image, orientation, is_of_columns=columns_first), size, columns_first, between)
    if not is_over_itself:
        image.close()  # which frees it
    bands = ((box, between.read(box)) for box in band_boxes(halfway, is_of_columns=not columns_first))
    resized = _Beside(size)
    _resize_lines(bands, size, not columns_first, resized)
    image.close()
    return resized.pixels


class _Over:
    """RGB pixels over those of an image."""

    def __init__(self, image: Image.Image, orientation: int) -> None:
        self._image, self._orientation = image, orientation

    def write(self, box: Box, band: Image.Image) -> None:
        paste_upright(self._image, self._orientation, box, band)

    def read(self, box: Box) -> Image.Image:
        return crop_upright(self._image, self._orientation, box).convert("RGB")


class _Beside:
    """RGB pixels in an array, 3 bytes each."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.pixels = np.empty((*size, 3), np.uint8)

    def write(self, box: Box, band: Image.Image) -> None:
        left, top, right, bottom = box
        self.pixels[top:bottom, left:right] = np.asarray(band)

    def read(self, box: Box) -> Image.Image:
        left, top, right, bottom = box
        return Image.fromarray(self.pixels[top:bottom, left:right])


def _resize_lines(
    bands: Iterable[tuple[Box, Image.Image]], size: tuple[int, int], are_columns: bool, target: _Over | _Beside
) -> None:
    """Resize whole columns to the height of ``(height, width)``, or whole rows to its width."""
    for (left, top, right, bottom), band in bands:
        box = (left, 0, right, size[0]) if are_columns else (0, top, size[1], bottom)
        target.write(box, resize_to(band, (box[2] - box[0], box[3] - box[1])))
