"""Decode encoded bytes, PIL images and arrays to upright RGB pixels.

Readers of files raise whatever they like (an AVIF with one flipped bit: RuntimeError; odd EXIF: AttributeError), so
that every exception of theirs is the row's error.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import (
    AvifImagePlugin,  # noqa: F401  # each registers its reader with Pillow, where Pillow was built with it
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    IcoImagePlugin,  # noqa: F401
    Image,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.probe import check_pixels, format_of, probe
from qwenvl_kit.images.resize import to_array
from qwenvl_kit.images.source_context import source_context

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwenvl_kit.images.resize import Sizing

_READERS = {"JPEG": ("JPEG", "MPO"), "AVIF": ("AVIF", "HEIF")}
_BAND_PIXELS = 1 << 19  # of the upright image that are made at a time
_LARGE_PIXELS = 24_000_000  # of images that are never copied as a whole
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
_TURNED = (5, 6, 7, 8)  # rows of the upright image are columns of the stored one
_FROM_THE_RIGHT = (2, 3, 7, 8)  # its first ones are the last columns of the stored one
_FROM_THE_BOTTOM = (3, 4, 6, 7)
_BICUBIC = Image.Resampling.BICUBIC
_LOST_WITHOUT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_of_open_files = threading.Lock()


def decode_bytes(
    data: bytes, label: str, *, max_image_pixels: int, draft_size: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode the first frame of an encoded image.

    Parameters
    ----------
    data : bytes
        A file of a format that `qwenvl_kit.images.probe.FORMATS` lists.
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
        ``(height, width)`` of the whole upright image.

    Raises
    ------
    RowError
        No image, a broken one, or too large a one, of the stage ``decode``.
    """
    with source_context("decode", label, "cannot be decoded"):
        probe(data, label, max_image_pixels=max_image_pixels)
        image, source_size = _read(data, label, max_image_pixels, draft_size)
        return to_array(image), source_size


def decode_resized(
    data: bytes, label: str, sizing: Sizing, *, max_image_pixels: int
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode the first frame of an encoded image, which `probe` accepted, and bring it to the size that the model sees.

    Returns
    -------
    pixels : uint8 array (H, W, 3)
        Upright, resized once.
    source_size : tuple of int
        ``(height, width)`` of the whole upright image.

    Raises
    ------
    RowError
        As `decode_bytes`; or it cannot be resized, of the stage ``resize``.
    """
    image, source_size = decode_resized_image(data, label, sizing, max_image_pixels=max_image_pixels)
    with source_context("resize", label, "cannot be resized"):
        return to_array(image), source_size


def decode_resized_image(
    data: bytes, label: str, sizing: Sizing, *, max_image_pixels: int
) -> tuple[Image.Image, tuple[int, int]]:
    """Do as `decode_resized`, but return an RGB image."""
    with source_context("decode", label, "cannot be decoded"):
        draft_size = _draft_size(data, sizing, max_image_pixels) if sizing.draft else None
        image, source_size = _read(data, label, max_image_pixels, draft_size, sizing)
    with source_context("resize", label, "cannot be resized"):
        height, width = sizing.target(source_size, label)
    return _resized(image, (width, height), label), source_size


def read_size(data: bytes, *, max_image_pixels: int = 89_478_485) -> tuple[int, int] | None:
    """Return the upright ``(height, width)`` that the header of an encoded image tells; None where there is none.

    No pixel is decoded, and nothing beyond `max_image_pixels` is opened.
    """
    try:
        probe(data, "the image", max_image_pixels=max_image_pixels)
        with _open(data) as image:
            return _upright_size(image, _orientation(image, reads_pixels=False))
    except Exception:  # noqa: BLE001  # whatever a reader raises, decoding tells it
        return None


def decode_pil(image: Image.Image, label: str, *, max_image_pixels: int) -> NDArray[np.uint8]:
    """Decode a PIL image that the caller opened; it is left as it is.

    Raises
    ------
    RowError
        The file behind the image is broken, or the image is too large, of the stage ``decode``.
    """
    with source_context("decode", label, "cannot be decoded"):
        check_pixels(image.height, image.width, label, max_image_pixels)
        with _alone(image):
            image.load()
        return to_rgb(image)


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
    check_pixels(array.shape[0], array.shape[1], label, max_image_pixels)
    levels = _to_uint8(array, label)
    if levels.ndim == 2 or levels.shape[2] == 1:
        return np.repeat(levels.reshape(*levels.shape[:2], 1), 3, axis=2)
    if levels.shape[2] == 4:
        return to_array(_over_white(Image.fromarray(np.ascontiguousarray(levels))))
    return np.ascontiguousarray(levels)


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
    return to_array(_upright_rgb(image, _orientation(image, reads_pixels=True)))


def _read(
    data: bytes, label: str, max_image_pixels: int, draft_size: tuple[int, int] | None, sizing: Sizing | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Upright RGB image, part of the way to the size wanted if it is large; and the upright size of the whole."""
    try:
        return _read_once(data, label, max_image_pixels, draft_size, sizing)
    except (RowError, MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception:
        if format_of(data, label) != "PNG" or (essential := _without_metadata(data)) is None:
            raise
        # Pillow refuses the pixels together with metadata that is too long or broken.
        return _read_once(essential, label, max_image_pixels, draft_size, sizing)


def _read_once(
    data: bytes, label: str, max_image_pixels: int, draft_size: tuple[int, int] | None, sizing: Sizing | None
) -> tuple[Image.Image, tuple[int, int]]:
    with _open(data) as image:
        check_pixels(image.height, image.width, label, max_image_pixels)
        whole_size = image.size
        if draft_size is not None:
            source_size = _upright_size(image, _orientation(image, reads_pixels=False))
            height, width = draft_size if source_size == (image.height, image.width) else draft_size[::-1]
            image.draft(None, (width, height))
        is_reduced = image.size != whole_size
        image.load()
        orientation = _orientation(image, reads_pixels=True)
        if not is_reduced:  # some readers turn an image themselves, so that only the pixels tell its size for certain
            source_size = _upright_size(image, orientation)
        if sizing is None or image.width * image.height <= _LARGE_PIXELS:
            return _upright_rgb(image, orientation), source_size
        with source_context("resize", label, "cannot be resized"):
            size = sizing.target(source_size, label)
        pixels = _first_pass(image, label, orientation, size)
        image.close()  # which frees it, before there is another copy of the image
    return Image.fromarray(pixels), source_size


def _open(data: bytes) -> Image.Image:
    kind = format_of(data, "the image")
    if kind == "HEIF":
        _register_heif()
    readers = [name for name in _READERS.get(kind, (kind,)) if name in Image.OPEN]
    if not readers:
        raise ValueError(f"this build of Pillow reads no {kind}; install the wheel of Pillow from PyPI")
    return Image.open(io.BytesIO(data), formats=readers)


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise ValueError("it is HEIF, which needs an extra: pip install 'qwenvl_kit[heif]'") from None
    register_heif_opener()


@contextlib.contextmanager
def _alone(image: Image.Image) -> Iterator[None]:
    """Let one thread at a time read images whose file objects may share a file, as members of a tar archive do."""
    file = getattr(image, "fp", None)
    is_own = file is None or type(file) is io.BytesIO or getattr(image, "_exclusive_fp", False)
    with contextlib.nullcontext() if is_own else _of_open_files:
        yield


def _draft_size(data: bytes, sizing: Sizing, max_image_pixels: int) -> tuple[int, int] | None:
    """Smallest size to decode at; None where the image is refused anyway, which decoding tells, and beside JPEGs."""
    size = read_size(data, max_image_pixels=max_image_pixels) if data.startswith(b"\xff\xd8") else None
    if size is None:
        return None
    try:
        return sizing.target(size, "the image")
    except RowError:
        return None


def _without_metadata(data: bytes) -> bytes | None:
    """A PNG of the chunks alone that its pixels need; None where there are no others."""
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] in _LOST_WITHOUT:
            kept.append(data[at : at + 12 + length])
        at += 12 + length
    essential = b"".join(kept)
    return essential if len(essential) < len(data) else None


def _upright_rgb(image: Image.Image, orientation: int) -> Image.Image:
    """Turn a loaded image upright and make it RGB."""
    if orientation not in _TRANSPOSED and image.mode == "RGB" and "transparency" not in image.info:
        return image
    height, width = _upright_size(image, orientation)
    upright = Image.new("RGB", (width, height))
    for box, band in _upright_bands(image, orientation, is_of_columns=False):
        upright.paste(band, box[:2])
    return upright


def _first_pass(image: Image.Image, label: str, orientation: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Turn an image upright, make it RGB and take the first of the two passes of resizing it to ``(height, width)``.

    Band by band into an array, which takes 3 bytes a pixel where a second image would take 4. Pillow resizes columns
    before rows where the height shrinks by more than twice as many pixels as the width, else rows before columns:
    https://github.com/python-pillow/Pillow/blob/13.0.0/src/libImaging/Resample.c
    """
    height, width = _upright_size(image, orientation)
    is_column_first = height - size[0] > max(0, 2 * (width - size[1]))
    pixels = np.empty((size[0], width, 3) if is_column_first else (height, size[1], 3), np.uint8)
    for (left, top, right, bottom), band in _upright_bands(image, orientation, is_of_columns=is_column_first):
        if is_column_first:
            pixels[:, left:right] = np.asarray(_resized(band, (band.width, size[0]), label))
        else:
            pixels[top:bottom] = np.asarray(_resized(band, (size[1], band.height), label))
    return pixels


def _upright_bands(
    image: Image.Image, orientation: int, *, is_of_columns: bool
) -> Iterator[tuple[tuple[int, int, int, int], Image.Image]]:
    """Give some rows or columns of the upright RGB image at a time, and the box that they fill in it."""
    to_levels = _levels_of(image) or _opaque
    turn = _TRANSPOSED.get(orientation)
    height, width = _upright_size(image, orientation)
    n_lines, length = (width, height) if is_of_columns else (height, width)
    step = max(16, _BAND_PIXELS // length)
    for start in range(0, n_lines, step):
        end = min(start + step, n_lines)
        box = (start, 0, end, height) if is_of_columns else (0, start, width, end)
        band = to_levels(image.crop(_stored_box(image, orientation, box)))
        yield box, band if turn is None else band.transpose(turn)


def _stored_box(image: Image.Image, orientation: int, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Where ``(left, top, right, bottom)`` of the upright image stands in the image as stored."""
    left, top, right, bottom = box
    if orientation in _TURNED:
        left, top, right, bottom = top, left, bottom, right
    if orientation in _FROM_THE_RIGHT:
        left, right = image.width - right, image.width - left
    if orientation in _FROM_THE_BOTTOM:
        top, bottom = image.height - bottom, image.height - top
    return left, top, right, bottom


def _resized(image: Image.Image, size: tuple[int, int], label: str) -> Image.Image:
    with source_context("resize", label, "cannot be resized"):
        return image if image.size == size else image.resize(size, _BICUBIC)


def _opaque(band: Image.Image) -> Image.Image:
    has_alpha = band.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in band.info
    return _over_white(band.convert("RGBA")) if has_alpha else band.convert("RGB")


def _levels_of(image: Image.Image) -> Callable[[Image.Image], Image.Image] | None:
    """How a band of levels beyond 8 bits becomes RGB; None where Pillow's own conversion does."""
    if image.mode.startswith("I;16"):
        clear = image.info.get("transparency")  # a level that stands for nothing
        return lambda band: _grey(np.asarray(band).astype(np.uint32), clear=clear, most=65535)
    if image.mode not in ("I", "F"):
        return None
    least, most = image.getextrema()
    if image.mode == "F":
        return _floats_of(image)
    if not (isinstance(least, int | float) and isinstance(most, int | float) and least >= 0 and most <= 65535):
        raise ValueError(f"its levels lie from {least} to {most}; give levels from 0 to 255, or to 65535")
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
            raise ValueError("it holds NaN or infinite levels")
        most = max(most, float(values.max()))
    scale = 255 if most <= 1 else 1
    return lambda band: Image.fromarray(np.clip(np.round(np.asarray(band) * scale), 0, 255).astype(np.uint8)).convert(
        "RGB"
    )


def _orientation(image: Image.Image, *, reads_pixels: bool) -> int:
    """EXIF orientation, 1 where there is none that can be read.

    Odd metadata is no fault of the pixels. PNG is the one format whose reader decodes the whole image for it.
    """
    if not reads_pixels and image.format == "PNG":
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  # readers of EXIF raise SyntaxError, struct.error, AttributeError, …
        return 1


def _upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    return (image.width, image.height) if orientation in _TURNED else (image.height, image.width)


def _over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def _to_uint8(array: np.ndarray[Any, Any], label: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        return ((array.astype(np.uint32) * 255 + 32895) >> 16).astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1:
        return np.round(array * 255).astype(np.uint8)
    raise RowError("decode", f"{label} is no picture; give uint8, or floats from 0 to 1")
