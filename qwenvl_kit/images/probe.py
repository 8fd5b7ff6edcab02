"""Read the header of an encoded image: its size, and what decoding it costs.

The size is checked here, since some readers decode inside ``Image.open``. Files whose decoding is provably short are
decoded in this process, all others in a process of their own (`qwenvl_kit.images.decode_pool`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.formats import format_of

MAX_PNG_CHUNKS = 100_000
"""Each costs Pillow about 1.7 µs; a 12-megapixel file has about 3,000."""

SHORT_PIXELS = 4_000_000
"""Most pixels, before and after resizing, of images that are decoded in this process: its heap would keep the memory of
larger ones, while another process returns it."""

# Decoding in this process takes less than a second, and less than 100 MB: WebP's reader holds three
# copies of the canvas, a progressive JPEG its coefficients.
_SHORT_BYTES = 16 * 2**20
_SHORT_SCAN_PIXELS = 120_000_000  # 5 ns each, measured on progressive JPEGs of quality 100
_SHORT_SCANS = 1_000
_SHORT_CHUNKS = 2_000
_HEADER_BYTES = 2**18
_SIZE_BOX = re.compile(b"ispe")
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")


@dataclass(frozen=True, slots=True)
class Probe:
    """The header of a file, and the cost of decoding it.

    Attributes
    ----------
    format : str
        One of `FORMATS`.
    size : tuple of int or None
        ``(height, width)`` in pixels as stored; None where only the format's reader can find it.
    is_short : bool
        Decoding takes less than a second, whatever the rest of the file contains.
    bytes_per_pixel : int
        Memory that decoding and resizing take.
    """

    format: str
    size: tuple[int, int] | None = None
    is_short: bool = False
    bytes_per_pixel: int = 8


def probe(data: bytes, *, max_image_pixels: int) -> Probe:
    """Return the format, size and cost of an encoded image.

    Parameters
    ----------
    data : bytes
        A whole file.
    max_image_pixels : int
        Largest width × height.

    Raises
    ------
    RowError
        The format is not on the list, or the image is too large; of the stage ``decode``.

    Examples
    --------
    >>> import io
    >>> from PIL import Image
    >>> file = io.BytesIO()
    >>> Image.new("RGB", (80, 60)).save(file, "PNG")
    >>> probe(file.getvalue(), max_image_pixels=10_000)
    Probe(format='PNG', size=(60, 80), is_short=True, bytes_per_pixel=8)
    """
    name = format_of(data)
    inspect = _INSPECTORS.get(name)
    try:
        found = Probe(name) if inspect is None else inspect(data)
    except (struct.error, IndexError):  # cut short; decoding raises the error
        found = Probe(name)
    if found.size is not None:
        check_pixels(*found.size, max_image_pixels)
    return found


def check_pixels(height: int, width: int, max_image_pixels: int) -> None:
    """Raise a RowError of the stage ``decode`` for an image of more than `max_image_pixels`."""
    if height * width > max_image_pixels:
        raise RowError(
            "decode",
            f"The image of {width}×{height} = {height * width} pixels exceeds max_image_pixels={max_image_pixels}. "
            "Raise it if you trust the source.",
        )


def _jpeg(data: bytes) -> Probe:
    at, size, is_progressive, n_components = 2, None, False, 0
    while True:
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        if marker in (0x01, *range(0xD0, 0xDA)):  # without a length; decoding raises an early end
            at += 1
            if marker == 0xD9:
                return Probe("JPEG", size)
        elif marker == 0xDA:
            break
        else:
            (length,) = struct.unpack_from(">H", data, at + 1)
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                height, width, n_components = struct.unpack_from(">HHB", data, at + 4)
                size, is_progressive = (height, width), marker not in (0xC0, 0xC1)
            at += 1 + max(2, length)
        if data[at] != 0xFF and (at := data.find(b"\xff", at)) < 0:  # bytes between segments, which libjpeg skips
            return Probe("JPEG", size)
    if size is None:
        return Probe("JPEG")
    # One scan of all components is decoded row by row, and ends the image; several are all read first.
    n_scans = 1 if not is_progressive and data[at + 3] == n_components else _count_scans(data, at)
    n_pixels = size[0] * size[1]
    is_short = (
        n_scans <= _SHORT_SCANS
        and n_pixels <= SHORT_PIXELS
        and n_pixels * n_scans <= _SHORT_SCAN_PIXELS
        and len(data) <= _SHORT_BYTES
    )
    return Probe("JPEG", size, is_short, 8 if n_scans == 1 else 14)  # coefficients of all scans are held


def _count_scans(data: bytes, at: int) -> int:
    n_scans = 1
    for found in _MARKER.finditer(data, at + 1):
        marker = data[found.start() + 1]
        n_scans += marker == 0xDA
        if marker == 0xD9 or n_scans > _SHORT_SCANS:
            break
    return n_scans


def _png(data: bytes) -> Probe:
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 4)
    n_chunks, at = 0, 8
    while at + 8 <= len(data) and n_chunks <= MAX_PNG_CHUNKS:
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] == b"IEND":
            break
        n_chunks += 1
        at += 12 + length
    if n_chunks > MAX_PNG_CHUNKS:
        raise RowError("decode", f"The PNG has more than {MAX_PNG_CHUNKS} chunks. Save it again with fewer.")
    is_short = (
        width * height * max(1, channels * depth // 8) <= 4 * SHORT_PIXELS
        and n_chunks <= _SHORT_CHUNKS
        and len(data) <= _SHORT_BYTES
    )
    return Probe("PNG", (height, width), is_short)


def _gif(data: bytes) -> Probe:
    width, height = struct.unpack_from("<HH", data, 6)
    # The first frame may exceed the screen of the header: only its reader finds the size.
    return Probe("GIF", (height, width), width * height <= SHORT_PIXELS and len(data) <= _SHORT_BYTES // 4)


def _webp(data: bytes) -> Probe:
    """Read the canvas, which Pillow allocates as it opens: https://developers.google.com/speed/webp/docs/riff_container."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        return Probe("WEBP")
    return Probe("WEBP", (height, width), width * height <= SHORT_PIXELS and len(data) <= _SHORT_BYTES)


def _bmp(data: bytes) -> Probe:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        compression = 0
    else:
        width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    # Run-length codes are read by Pillow in Python, a hundred times as slowly.
    is_short = compression in (0, 3) and abs(width * height) <= SHORT_PIXELS and len(data) <= 4 * SHORT_PIXELS
    return Probe("BMP", (abs(height), abs(width)), is_short)


def _ico(data: bytes) -> Probe:
    """Read the largest image within, which Pillow decodes as it opens the file, whatever size the directory has."""
    (n_images,) = struct.unpack_from("<H", data, 4)
    largest = (0, 0)
    for entry in range(n_images):
        (at,) = struct.unpack_from("<I", data, 6 + 16 * entry + 12)
        if data[at : at + 8] == b"\x89PNG\r\n\x1a\n":
            width, height = struct.unpack_from(">II", data, at + 16)
        else:  # a bitmap header; its height counts the mask too
            width, height = (abs(side) for side in struct.unpack_from("<ii", data, at + 4))
            height //= 2
        largest = max(largest, (height, width), key=lambda size: size[0] * size[1])
    return Probe("ICO", largest)


def _base_media(data: bytes) -> tuple[int, int] | None:
    """Read the largest of the sizes that a file of AVIF or HEIF names: those of its items, tiles and thumbnails."""
    sizes = [struct.unpack_from(">II", data, found.end() + 4) for found in _SIZE_BOX.finditer(data, 0, _HEADER_BYTES)]
    width, height = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    return (height, width) if width and height else None


def _avif(data: bytes) -> Probe:
    return Probe("AVIF", _base_media(data), bytes_per_pixel=12)


def _heif(data: bytes) -> Probe:
    return Probe("HEIF", _base_media(data), bytes_per_pixel=12)


def _jpeg2000(data: bytes) -> Probe:
    at = data.find(b"\xff\x4f\xff\x51", 0, _HEADER_BYTES)
    if at < 0:
        return Probe("JPEG2000")
    right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
    is_sound = right > left and bottom > top
    return Probe("JPEG2000", (bottom - top, right - left) if is_sound else None, bytes_per_pixel=24)


def _tiff(data: bytes) -> Probe:
    order = "<" if data[:2] == b"II" else ">"
    if data[2:4] not in (b"*\0", b"\0*"):  # with places of 64 bits
        return Probe("TIFF", bytes_per_pixel=12)
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (n_entries,) = struct.unpack_from(f"{order}H", data, at)
    sides = {}
    for entry in range(at + 2, at + 2 + 12 * n_entries, 12):
        tag, kind = struct.unpack_from(f"{order}HH", data, entry)
        if tag in (256, 257) and kind in (3, 4):  # width and height, of 16 or 32 bits
            (sides[tag],) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", data, entry + 8)
    size = (sides[257], sides[256]) if len(sides) == 2 else None
    return Probe("TIFF", size, bytes_per_pixel=12)


_INSPECTORS: dict[str, Callable[[bytes], Probe]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "WEBP": _webp,
    "BMP": _bmp,
    "ICO": _ico,
    "TIFF": _tiff,
    "AVIF": _avif,
    "HEIF": _heif,
    "JPEG2000": _jpeg2000,
}
