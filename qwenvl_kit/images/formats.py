"""Detect the format of an encoded image by its first bytes.

Only formats of an allow-list are read, as Pillow advises for untrusted files:
https://pillow.readthedocs.io/en/stable/handbook/security.html.
"""

from __future__ import annotations

from qwenvl_kit.errors import RowError

FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "ICO", "JPEG2000", "HEIF")
"""Names of Pillow's readers that may be used."""

_OTHERS = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"SIMPLE  =", "FITS"),
    (b"DDS ", "DDS"),
    (b"8BPS", "Photoshop's PSD"),
    (b"icns", "ICNS"),
    (b"qoif", "QOI"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"\x01\x00\x00\x00", "EMF"),
    (b"BLP1", "BLP"),
    (b"BLP2", "BLP"),
    (b"GRIB", "GRIB"),
    (b"BUFR", "BUFR"),
    (b"\x89HDF", "HDF5"),
    (b"/* XPM */", "XPM"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"P1", "PBM"),
    (b"P2", "PGM"),
    (b"P3", "PPM"),
    (b"P4", "PBM"),
    (b"P5", "PGM"),
    (b"P6", "PPM"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzip"),
)


def format_of(data: bytes) -> str:
    """Return the one of `FORMATS` that a file's signature names; ``JPEG`` stands for MPO too.

    Raises
    ------
    RowError
        It names none, of the stage ``decode``.
    """
    name = _format(data)
    if name is None:
        raise RowError("decode", _why_not(data))
    return name


def _format(data: bytes) -> str | None:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM"):
        return "BMP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0")):
        return "TIFF"
    if data.startswith(b"\0\0\1\0"):
        return "ICO"
    if data.startswith((b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  \x0d\x0a\x87\x0a")):
        return "JPEG2000"
    return _base_media_format(data) if data[4:8] == b"ftyp" else None


def _base_media_format(data: bytes) -> str | None:
    """Distinguish AVIF from HEIF by the brands of the file-type box: https://nokiatech.github.io/heif/technical.html."""
    length = min(int.from_bytes(data[:4]), 256)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, length - 3, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIF" if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"} else None


def _why_not(data: bytes) -> str:
    head = data[:256].lstrip()
    if head[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "Not an image, but an HTML page. Give the URL of the image itself."
    if head.startswith((b"<svg", b"<?xml", b"\xef\xbb\xbf<")):
        return "SVG and XML are not read. Convert the image to PNG."
    name = next((name for signature, name in _OTHERS if data.startswith(signature)), None)
    if name is not None:
        return f"The format is {name}, which is not read. Convert the image to PNG."
    return f"Not an image of a format that is read ({', '.join(FORMATS)}). Convert the image to PNG."
