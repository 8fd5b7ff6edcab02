"""Decode arrays of several shapes and types to RGB pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.pixels import to_array
from qwenvl_kit.images.probe import check_pixels
from qwenvl_kit.images.rgb import over_white

if TYPE_CHECKING:
    from numpy.typing import NDArray


def decode_array(array: np.ndarray[Any, Any], *, max_image_pixels: int) -> NDArray[np.uint8]:
    """Return the pixels of an array, uint8 ``(H, W, 3)``.

    Parameters
    ----------
    array : array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)
        uint8; uint16, scaled to 8 bits; bool; or floats from 0 to 1. Four channels are RGB and alpha.
    max_image_pixels : int
        Largest width × height.

    Raises
    ------
    RowError
        Another shape, type or range, of the stage ``decode``.
    """
    check_shape(array)
    check_pixels(array.shape[0], array.shape[1], max_image_pixels)
    levels = _to_uint8(array)
    if levels.ndim == 2 or levels.shape[2] == 1:
        return np.repeat(levels.reshape(*levels.shape[:2], 1), 3, axis=2)
    if levels.shape[2] == 4:
        return to_array(over_white(Image.fromarray(np.ascontiguousarray(levels))))
    return np.ascontiguousarray(levels)


def check_shape(array: np.ndarray[Any, Any]) -> None:
    """Raise a RowError of the stage ``decode`` for an array that has not the shape of an image."""
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        raise RowError(
            "decode", f"The array of shape {array.shape} has its channels first. Pass np.moveaxis(array, 0, -1)."
        )
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise RowError(
            "decode",
            f"The array of shape {array.shape} is not an image. Its shape must be (H, W), (H, W, 1), (H, W, 3) or "
            "(H, W, 4).",
        )


def _to_uint8(array: np.ndarray[Any, Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        return ((array.astype(np.uint32) * 255 + 32895) >> 16).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1:
        return np.round(array * 255).astype(np.uint8)
    raise RowError("decode", f"The array of {array.dtype} is not an image. Pass uint8, or floats from 0 to 1.")
