"""Turn a loaded Pillow image upright and make it RGB, some rows or columns at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.pixels import to_array
from qwenvl_kit.images.source_context import stage_context

if TYPE_CHECKING:
    from numpy.typing import NDArray

Box = tuple[int, int, int, int]
"""``(left, top, right, bottom)`` in pixels."""

_BAND_PIXELS = 1 << 19  # of the upright image that are made at a time
_ORIENTATION = 0x0112
_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INVERSE = {6: 8, 8: 6}  # all others undo themselves
_TURNED = (5, 6, 7, 8)  # rows of the upright image are columns of the stored one
_FROM_THE_RIGHT = (2, 3, 7, 8)  # its first rows or columns are the last columns of the stored one
_FROM_THE_BOTTOM = (3, 4, 6, 7)


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Turn an image upright by its EXIF and lay its alpha over white.

    Parameters
    ----------
    image : PIL.Image.Image
        Of any mode; its current frame counts, which is the first one of a file just opened. Floats are levels from 0
        to 1 if none is above 1, else from 0 to 255; whole numbers of 32 bits are levels from 0 to 255 if none is above
        255, else from 0 to 65535.

    Returns
    -------
    uint8 array (H, W, 3)
        RGB.
    """
    image.load()
    return to_array(upright_rgb(image, orientation_of(image, reads_pixels=True)))


def upright_rgb(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a loaded image upright and make it RGB."""
    if orientation not in _TRANSPOSED and image.mode == "RGB" and "transparency" not in image.info:
        return image
    height, width = upright_size(image, orientation)
    upright = Image.new("RGB", (width, height))
    for box, band in upright_bands(image, orientation, is_of_columns=False):
        upright.paste(band, box[:2])
    return upright


def upright_bands(image: Image.Image, orientation: int, *, is_of_columns: bool) -> Iterator[tuple[Box, Image.Image]]:
    """Give some rows or columns of the upright RGB image at a time, and the box that they fill in it."""
    to_levels = _levels_of(image) or _opaque
    for box in band_boxes(upright_size(image, orientation), is_of_columns=is_of_columns):
        yield box, _turn(to_levels(image.crop(_stored_box(image, orientation, box))), orientation)


def band_boxes(size: tuple[int, int], *, is_of_columns: bool) -> Iterator[Box]:
    """Give the boxes of some whole rows or columns of an image of ``(height, width)`` at a time."""
    height, width = size
    n_lines, length = (width, height) if is_of_columns else (height, width)
    step = max(16, _BAND_PIXELS // length)
    for start in range(0, n_lines, step):
        end = min(start + step, n_lines)
        yield (start, 0, end, height) if is_of_columns else (0, start, width, end)


def crop_upright(image: Image.Image, orientation: int, box: Box) -> Image.Image:
    """Return a part of the upright image, of the mode that it is stored in."""
    return _turn(image.crop(_stored_box(image, orientation, box)), orientation)


def paste_upright(image: Image.Image, orientation: int, box: Box, part: Image.Image) -> None:
    """Overwrite a part of the upright image where it is stored."""
    image.paste(_turn(part, _INVERSE.get(orientation, orientation)), _stored_box(image, orientation, box))


def _turn(part: Image.Image, orientation: int) -> Image.Image:
    turn = _TRANSPOSED.get(orientation)
    return part if turn is None else part.transpose(turn)


def _stored_box(image: Image.Image, orientation: int, box: Box) -> Box:
    """Return where a part of the upright image is in the image as stored."""
    left, top, right, bottom = box
    if orientation in _TURNED:
        left, top, right, bottom = top, left, bottom, right
    if orientation in _FROM_THE_RIGHT:
        left, right = image.width - right, image.width - left
    if orientation in _FROM_THE_BOTTOM:
        top, bottom = image.height - bottom, image.height - top
    return left, top, right, bottom


def resize_to(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an RGB image to ``(width, height)``, bicubic."""
    with stage_context("resize", "Cannot resize the image"):
        return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _opaque(band: Image.Image) -> Image.Image:
    has_alpha = band.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in band.info
    return over_white(band.convert("RGBA")) if has_alpha else band.convert("RGB")


def _levels_of(image: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """Return the conversion to RGB of a band of more than 8 bits; None where Pillow's own is right."""
    if image.mode.startswith("I;16"):
        clear = image.info.get("transparency")  # a level that stands for nothing
        return lambda band: _grey(np.asarray(band).astype(np.uint32), clear=clear, most=65535)
    if image.mode not in ("I", "F"):
        return None
    least, most = image.getextrema()
    if image.mode == "F":
        return _floats_of(image)
    if not (isinstance(least, int | float) and isinstance(most, int | float) and least >= 0 and most <= 65535):
        raise RowError("decode", f"The levels range from {least} to {most}. Give levels from 0 to 255, or to 65535.")
    return lambda band: _grey(np.asarray(band).astype(np.uint32), clear=None, most=255 if most <= 255 else 65535)


def _grey(levels: NDArray[np.uint32], *, clear: object, most: int) -> Image.Image:
    # Equal to round(level / 257) for all 16 bits, without floats: https://www.w3.org/TR/png-3/#13Sample-depth-rescaling
    small = levels if most == 255 else (levels * 255 + 32895) >> 16
    if isinstance(clear, int):
        small = np.where(levels == clear, 255, small)
    return Image.fromarray(small.astype(np.uint8)).convert("RGB")


def _floats_of(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    most = -np.inf
    step = max(16, _BAND_PIXELS // image.width)
    for top in range(0, image.height, step):
        values = np.asarray(image.crop((0, top, image.width, min(top + step, image.height))))
        if not np.isfinite(values).all():
            raise RowError("decode", "The image has NaN or infinite levels. Replace them.")
        most = max(most, float(values.max()))
    scale = 255 if most <= 1 else 1
    return lambda band: Image.fromarray(np.clip(np.round(np.asarray(band) * scale), 0, 255).astype(np.uint8)).convert(
        "RGB"
    )


def orientation_of(image: Image.Image, *, reads_pixels: bool) -> int:
    """Return the EXIF orientation, 1 where none can be read.

    Broken metadata does not spoil the pixels. PNG is the one format whose reader decodes the whole image for it, unless
    the metadata stand before the pixels. TIFF's reader turns the size as it opens a file, and the pixels as it loads
    them.
    """
    if not reads_pixels and (image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info)):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  # readers of EXIF raise SyntaxError, struct.error, AttributeError, …
        return 1


def upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """Return ``(height, width)`` of the upright image."""
    return (image.width, image.height) if orientation in _TURNED else (image.height, image.width)


def over_white(image: Image.Image) -> Image.Image:
    """Lay an RGBA image over white."""
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white
