"""Copy the pixels of a Pillow image into NumPy arrays, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BAND_PIXELS = 1 << 21


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an RGB image, uint8 ``(H, W, 3)``.

    NumPy's own conversion holds three copies on the way; a large image takes it in bands.
    """
    if image.width * image.height <= _BAND_PIXELS:
        return np.asarray(image, np.uint8)  # which refuses what NumPy could only take for an object
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    top = 0
    for band in bands(image):
        pixels[top : top + len(band)] = band
        top += len(band)
    return pixels


def bands(image: Image.Image) -> Iterator[NDArray[np.uint8]]:
    """Give the pixels of an RGB image some rows at a time, uint8 ``(h, W, 3)``."""
    n_rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, n_rows):
        yield np.asarray(image.crop((0, top, image.width, min(top + n_rows, image.height))), np.uint8)
