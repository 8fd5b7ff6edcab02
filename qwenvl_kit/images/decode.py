"""Encoded bytes, a PIL image or an array in, upright RGB pixels out.

It never sees an address: `label` is only for its messages.
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from qwenvl_kit.errors import RowError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What Pillow's readers raise on broken files; decoders for single formats add to OSError.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    ZeroDivisionError,
    struct.error,
    Image.DecompressionBombError,
    Warning,  # of which Pillow has many, and which the caller may have turned into errors
)


def decode_bytes(
    data: bytes, label: str, *, max_image_pixels: int, draft_size: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode the first frame of an encoded picture.

    Parameters
    ----------
    data : bytes
        A file of any format that Pillow reads.
    label : str
        Name of the source, for messages.
    max_image_pixels : int
        Largest width × height.
    draft_size : tuple of int, optional
        ``(height, width)``: a JPEG may be decoded at the smallest of its built-in scales that is not smaller.

    Returns
    -------
    pixels : uint8 array (H, W, 3)
        Upright, alpha laid over white.
    source_size : tuple of int
        ``(height, width)`` of the whole upright picture.

    Raises
    ------
    RowError
        No picture, a broken one, or too large a one, of the stage ``decode``.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            whole_size, upright_size = image.size, _check_size(image, label, max_image_pixels)
            if draft_size is not None:
                height, width = draft_size if upright_size == (image.height, image.width) else draft_size[::-1]
                image.draft(None, (width, height))
            is_reduced = image.size != whole_size
            pixels = to_rgb(image)
            # Some readers turn a picture themselves, so that only the pixels tell its upright size for certain.
            return pixels, upright_size if is_reduced else (pixels.shape[0], pixels.shape[1])
    except RowError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(label, error) from error
    except UnidentifiedImageError as error:
        raise RowError("decode", f"{label} is no picture that Pillow can read{_hint(data)}") from error
    except _BROKEN as error:
        raise RowError("decode", f"{label} cannot be decoded: {_first_line(error)}") from error


def read_size(data: bytes) -> tuple[int, int] | None:
    """Upright ``(height, width)`` from the header of an encoded picture; None where there is none to read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _upright_size(image)
    except _BROKEN:
        return None


def decode_pil(image: Image.Image, label: str, *, max_image_pixels: int) -> NDArray[np.uint8]:
    """Decode a PIL image that the caller opened; it is left as it is.

    Raises
    ------
    RowError
        The file behind the image is broken, or the image is too large, of the stage ``decode``.
    """
    try:
        _check_size(image, label, max_image_pixels)
        return to_rgb(image)
    except RowError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(label, error) from error
    except _BROKEN as error:
        raise RowError("decode", f"{label} cannot be decoded: {_first_line(error)}") from error


def decode_array(array: np.ndarray[Any, Any], label: str, *, max_image_pixels: int) -> NDArray[np.uint8]:
    """Turn an array into RGB pixels.

    Parameters
    ----------
    array : array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)
        uint8; uint16, of which the high bytes count; bool; or floats from 0 to 1. Four channels are RGB and alpha.
    label : str
        Name of the source, for messages.
    max_image_pixels : int
        Largest width × height.

    Raises
    ------
    RowError
        Another shape, type or range, of the stage ``decode``.
    """
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        raise RowError("decode", f"{label} has its channels first; pass np.moveaxis(array, 0, -1)")
    if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise RowError("decode", f"{label} is no picture; its shape must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    _check_pixels(array.shape[0], array.shape[1], label, max_image_pixels)
    levels = _to_uint8(array, label)
    if levels.ndim == 2 or levels.shape[2] == 1:
        return np.repeat(levels.reshape(*levels.shape[:2], 1), 3, axis=2)
    if levels.shape[2] == 4:
        return np.asarray(_over_white(Image.fromarray(np.ascontiguousarray(levels))))
    return np.ascontiguousarray(levels)


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Turn an image upright by its EXIF and lay its alpha over white.

    Parameters
    ----------
    image : PIL.Image.Image
        Of any mode; its current frame counts, which is the first one of a file just opened. Floats are levels from 0
        to 1 if none is above 1, else from 0 to 255.

    Returns
    -------
    uint8 array (H, W, 3)
        RGB.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16") or upright.mode == "I":
        levels = np.asarray(upright).astype(np.float64) / 257  # 16 bits a channel; Pillow's own convert would clip them
        upright = Image.fromarray(np.clip(np.round(levels), 0, 255).astype(np.uint8))
    elif upright.mode == "F":
        upright = Image.fromarray(_float_levels(np.asarray(upright)))
    if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
        upright = _over_white(upright.convert("RGBA"))
    return np.asarray(upright.convert("RGB"))


def _float_levels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite levels")
    scale = 255 if values.max() <= 1 else 1
    return np.clip(np.round(values * scale), 0, 255).astype(np.uint8)


def _over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def _to_uint8(array: np.ndarray[Any, Any], label: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return np.round(array / 257).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1:
        return np.round(array * 255).astype(np.uint8)
    raise RowError("decode", f"{label} is no picture; give uint8, or floats from 0 to 1")


def _check_size(image: Image.Image, label: str, max_image_pixels: int) -> tuple[int, int]:
    """Upright ``(height, width)`` from the header, before any pixel is decoded."""
    _check_pixels(image.height, image.width, label, max_image_pixels)
    return _upright_size(image)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def _check_pixels(height: int, width: int, label: str, max_image_pixels: int) -> None:
    if height * width > max_image_pixels:
        raise RowError(
            "decode",
            f"{label} has {width}×{height} = {height * width} pixels, more than max_image_pixels={max_image_pixels}; "
            "raise max_image_pixels if you trust it",
        )


def _bomb(label: str, error: Exception | Warning) -> RowError:
    """Pillow has a limit of its own, below which the caller's can only lower it."""
    return RowError(
        "decode",
        f"{label} is too large for Pillow: {_first_line(error)}; raise max_image_pixels and "
        "PIL.Image.MAX_IMAGE_PIXELS if you trust it",
    )


def _hint(data: bytes) -> str:
    head = data[:256].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return ": it is an HTML page"
    if head.startswith((b"<svg", b"<?xml")):
        return ": it is SVG or XML; convert it to PNG first"
    if b"ftypheic" in head or b"ftypmif1" in head:
        return ": it is HEIF; install pillow-heif and call pillow_heif.register_heif_opener()"
    return ""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
