"""Decode encoded bytes and Pillow images to upright RGB pixels.

Pillow's readers raise anything (an AVIF with one flipped bit: RuntimeError; odd EXIF: AttributeError), so that every
exception of theirs is a row error.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

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
from qwenvl_kit.images.formats import format_of
from qwenvl_kit.images.pixels import to_array
from qwenvl_kit.images.probe import check_pixels, probe
from qwenvl_kit.images.resize_in_bands import resize_in_bands
from qwenvl_kit.images.rgb import (
    orientation_of,
    resize_to,
    to_rgb,
    upright_rgb,
    upright_size,
)
from qwenvl_kit.images.source_context import source_context, stage_context

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qwenvl_kit.images.resize import TargetSize

_READERS = {"JPEG": ("JPEG", "MPO"), "AVIF": ("AVIF", "HEIF")}
LARGE_PIXELS = 24_000_000  # of images that are never copied as a whole
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_FAILED = "Cannot decode the image"
_shared_files = threading.Lock()


def decode_bytes(
    data: bytes, label: str, *, max_image_pixels: int, draft_size: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode the first frame of an encoded image.

    Parameters
    ----------
    data : bytes
        A file of a format that `qwenvl_kit.images.formats.FORMATS` lists.
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
        The file is not an image, broken, or too large, of the stage ``decode``.
    """
    with source_context(label, "decode", _FAILED):
        probe(data, max_image_pixels=max_image_pixels)
        image, source_size = _read(data, max_image_pixels, draft_size)
        return to_array(image), source_size


def decode_resized(
    data: bytes, sizing: TargetSize, *, max_image_pixels: int
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode the first frame of an encoded image, which `probe` accepted, and resize it.

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
    image, source_size = decode_resized_image(data, sizing, max_image_pixels=max_image_pixels)
    with stage_context("resize", "Cannot resize the image"):
        return to_array(image), source_size


def decode_resized_image(
    data: bytes, sizing: TargetSize, *, max_image_pixels: int
) -> tuple[Image.Image, tuple[int, int]]:
    """Do as `decode_resized`, but return an RGB image."""
    with stage_context("decode", _FAILED):
        draft_size = _draft_size(data, sizing, max_image_pixels) if sizing.draft else None
        image, source_size = _read(data, max_image_pixels, draft_size, sizing)
    with stage_context("resize", "Cannot resize the image"):
        height, width = sizing.target(source_size)
    return resize_to(image, (width, height)), source_size


def read_size(data: bytes, *, max_image_pixels: int = 89_478_485) -> tuple[int, int] | None:
    """Return the upright ``(height, width)`` in the header of an encoded image; None where it cannot be read.

    No pixel is decoded, and no image beyond `max_image_pixels` is opened.
    """
    try:
        return size_in_header(data, max_image_pixels=max_image_pixels)
    except RowError:  # decoding raises the error
        return None


def size_in_header(data: bytes, *, max_image_pixels: int) -> tuple[int, int]:
    """Return the upright ``(height, width)`` in the header of an encoded image, which may be cut short behind it.

    Raises
    ------
    RowError
        The bytes are no image, too large, or hold no whole header, of the stage ``decode``.
    """
    with stage_context("decode", _FAILED):
        probe(data, max_image_pixels=max_image_pixels)
        with _open(data) as image:
            check_pixels(image.height, image.width, max_image_pixels)
            return upright_size(image, orientation_of(image, reads_pixels=False))


def decode_pil(image: Image.Image, *, max_image_pixels: int) -> NDArray[np.uint8]:
    """Return the pixels of a Pillow image, uint8 ``(H, W, 3)``; the image stays as it is.

    Raises
    ------
    RowError
        The file behind the image is broken, or the image is too large, of the stage ``decode``.
    """
    with stage_context("decode", _FAILED):
        check_pixels(image.height, image.width, max_image_pixels)
        with _locked_file(image):
            image.load()
        return to_rgb(image)


def _read(
    data: bytes, max_image_pixels: int, draft_size: tuple[int, int] | None, sizing: TargetSize | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """Return an upright RGB image, partly resized where it is large, and the upright size of the whole."""
    try:
        return _load(data, max_image_pixels, draft_size, sizing)
    except (RowError, MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception:
        if format_of(data) != "PNG" or (essential := _without_metadata(data)) is None:
            raise
        # Pillow refuses the pixels together with metadata that is too long or broken.
        return _load(essential, max_image_pixels, draft_size, sizing)


def _load(
    data: bytes, max_image_pixels: int, draft_size: tuple[int, int] | None, sizing: TargetSize | None
) -> tuple[Image.Image, tuple[int, int]]:
    with _open(data) as image:
        check_pixels(image.height, image.width, max_image_pixels)
        reduced_from = None if draft_size is None else _reduce(image, draft_size)
        image.load()
        orientation = orientation_of(image, reads_pixels=True)
        # Some readers turn an image themselves, so that only the loaded pixels have its certain size.
        source_size = reduced_from or upright_size(image, orientation)
        if sizing is None or image.width * image.height <= LARGE_PIXELS:
            return upright_rgb(image, orientation), source_size
        with stage_context("resize", "Cannot resize the image"):
            size = sizing.target(source_size)
        return Image.fromarray(resize_in_bands(image, orientation, size)), source_size


def _reduce(image: Image.Image, draft_size: tuple[int, int]) -> tuple[int, int] | None:
    """Let a JPEG be decoded at a reduced scale; return its whole upright size, None where it is not reduced."""
    whole_size, source_size = image.size, upright_size(image, orientation_of(image, reads_pixels=False))
    height, width = draft_size if source_size == (image.height, image.width) else draft_size[::-1]
    image.draft(None, (width, height))
    return None if image.size == whole_size else source_size


def _open(data: bytes) -> Image.Image:
    kind = format_of(data)
    if kind == "HEIF":
        _register_heif()
    readers = [name for name in _READERS.get(kind, (kind,)) if name in Image.OPEN]
    if not readers:
        raise RowError("decode", f"This build of Pillow reads no {kind}. Install the wheel of Pillow from PyPI.")
    return Image.open(io.BytesIO(data), formats=readers)


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise RowError("decode", "HEIF requires an extra. Install it: pip install 'qwenvl_kit[heif]'") from None
    register_heif_opener()


@contextlib.contextmanager
def _locked_file(image: Image.Image) -> Iterator[None]:
    """Let one thread at a time read images whose file objects may share a file, as members of a tar archive do."""
    file = getattr(image, "fp", None)
    is_own = file is None or type(file) is io.BytesIO or getattr(image, "_exclusive_fp", False)
    with contextlib.nullcontext() if is_own else _shared_files:
        yield


def _draft_size(data: bytes, sizing: TargetSize, max_image_pixels: int) -> tuple[int, int] | None:
    """Return the smallest size to decode a JPEG at; None for other formats, and where decoding raises an error."""
    size = read_size(data, max_image_pixels=max_image_pixels) if data.startswith(b"\xff\xd8") else None
    if size is None:
        return None
    try:
        return sizing.target(size)
    except RowError:
        return None


def _without_metadata(data: bytes) -> bytes | None:
    """Return a PNG of the chunks that its pixels need; None where it has no others."""
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] in _PIXEL_CHUNKS:
            kept.append(data[at : at + 12 + length])
        at += 12 + length
    essential = b"".join(kept)
    return essential if len(essential) < len(data) else None
