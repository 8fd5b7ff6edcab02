"""Small whole files of every format that Pillow writes or opens, to be damaged by `malformed_inputs.mutations`."""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, features

ALLOWED = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "ICO", "JPEG2000", "HEIF")
"""Formats that may become images; a file of any other format must be a row error."""

SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"RIFF",
    b"BM",
    b"II",
    b"MM",
    b"\x00\x00\x01\x00",
    b"\xff\x4f\xff\x51",
)
"""Beginnings of files of allowed formats; the others are told by their ``ftyp`` or ``jP`` box."""

DDS_CODES = (
    b"DXT1",
    b"DXT3",
    b"DXT5",
    b"ATI1",
    b"ATI2",
    b"BC4U",
    b"BC5S",
    b"BC5U",
    b"DX10",
    b"ZZZZ",
    b"\x00\x00\x00\x00",
)


@functools.cache
def seeds() -> dict[str, bytes]:
    """Return all seeds under names that begin with their format, as ``JPEG progressive``."""
    made: dict[str, bytes] = {}
    for source in (_jpeg, _png, _animated, _tiff, _modern, _windows, _written, _dds, _headers):
        for name, data in source():
            assert name not in made, name
            made[name] = data
    return made


def may_become_image(data: bytes) -> bool:
    """Whether a file begins as one of an allowed format does."""
    return data.startswith(SIGNATURES) or data[4:8] in (b"ftyp", b"jP  ")


def small(mode: str = "RGB", size: tuple[int, int] = (24, 17)) -> Image.Image:
    """Return a small image with some structure, so that all codecs have something to do."""
    width, height = size
    ramp = np.add.outer(np.arange(height) * 9, np.arange(width) * 5) % 256
    levels = np.stack([ramp, 255 - ramp, (ramp * 3) % 256], axis=2).astype(np.uint8)
    levels[3:9, 4:12] = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray((levels[:, :, 0].astype(np.uint16) * 257).astype(np.uint16))
    image = Image.fromarray(levels)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(levels[:, :, 1]))
    return image.convert(mode)


def exif_block(entries: list[tuple[int, int, int, bytes]], *, order: str = "<") -> bytes:
    """Return a TIFF structure of one directory of ``(tag, type, count, four bytes of value)``."""
    head = (b"II*\x00" if order == "<" else b"MM\x00*") + struct.pack(order + "I", 8)
    body = b"".join(struct.pack(order + "HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return head + struct.pack(order + "H", len(entries)) + body + bytes(4)


def random_exif(chance: random.Random) -> bytes:
    """Return a TIFF structure whose tags, types, counts and values are anything."""
    order = chance.choice("<>")
    tags = (0x0112, 0x010E, 0x0128, 0x8769, 0x8825, 0xA005, 0x0100, 0x0201, 0x9286, 0x927C)
    entries = [
        (
            chance.choice((*tags, chance.randrange(65536))),
            chance.choice((*range(1, 14), chance.randrange(65536))),
            chance.choice((0, 1, 2, 3, 5, 0x7FFFFFFF, 0xFFFFFFFF, chance.randrange(100))),
            chance.choice(
                (chance.randbytes(4), struct.pack(order + "HH", chance.randrange(12), 0), b"\xff" * 4, bytes(4))
            ),
        )
        for _ in range(chance.randrange(1, 7))
    ]
    return exif_block(entries, order=order) + chance.randbytes(chance.randrange(20))


def png(
    width: int,
    height: int,
    more: list[tuple[bytes, bytes]],
    *,
    rows: bytes = b"",
    depth: int = 8,
    interlaced: bool = False,
) -> bytes:
    """Return an RGB PNG of the chunks given, with a header that claims the size given."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes((depth, 2, 0, 0, interlaced))
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)


def _save(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _jpeg() -> Iterator[tuple[str, bytes]]:
    image = small()
    yield "JPEG baseline", _save(image, "JPEG")
    yield "JPEG 4:4:4", _save(image, "JPEG", subsampling=0, quality=95)
    yield "JPEG progressive", _save(image, "JPEG", progressive=True)
    yield "JPEG restarts", _save(image, "JPEG", restart_marker_blocks=1)
    yield "JPEG optimised", _save(image, "JPEG", optimize=True, quality=20)
    for mode in ("L", "CMYK", "YCbCr"):
        yield f"JPEG {mode}", _save(small(mode), "JPEG")
    yield "JPEG profile", _save(image, "JPEG", icc_profile=b"no profile" * 9, comment=b"a comment", dpi=(72, 72))
    yield "JPEG XMP", _save(image, "JPEG", xmp=b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"JPEG orientation {orientation}", _save(image, "JPEG", exif=exif)
    for order in "<>":
        turned = (0x0112, 3, 1, struct.pack(order + "HH", 6, 0))
        for name, entry in {
            "ASCII as float": (0x010E, 11, 1, struct.pack(order + "f", 1.5)),
            "negative unit": (0x0128, 8, 1, struct.pack(order + "hh", -1, 0)),
            "text in interop": (0xA005, 2, 4, b"abc\x00"),
            "unknown type": (0x0131, 99, 1, bytes(4)),
            "far pointer": (0x8769, 4, 1, b"\xff\xff\xff\x00"),
            "own directory": (0x8769, 4, 1, struct.pack(order + "I", 8)),
            "huge count": (0x010F, 2, 0xFFFFFFFF, bytes(4)),
        }.items():
            block = b"Exif\x00\x00" + exif_block([entry, turned], order=order)
            yield f"JPEG EXIF {name} {order}", _save(image, "JPEG", exif=block)
    yield "MPO two images", _save(image, "MPO", save_all=True, append_images=[small(size=(16, 16))])


def _png() -> Iterator[tuple[str, bytes]]:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield f"PNG {mode}", _save(small(mode), "PNG")
    for bits in (1, 2, 4):
        palette = small().quantize(2**bits)
        yield f"PNG P {bits} bits", _save(palette, "PNG", bits=bits)
    yield "PNG tRNS palette", _save(small("P"), "PNG", transparency=bytes(range(64)))
    yield "PNG tRNS grey", _save(small("L"), "PNG", transparency=9)
    yield "PNG tRNS 16 bits", _save(small("I;16"), "PNG", transparency=900)
    yield "PNG tRNS RGB", _save(small(), "PNG", transparency=(0, 255, 0))
    yield "PNG profile", _save(small(), "PNG", icc_profile=b"no profile" * 9, dpi=(72, 72))
    exif = b"Exif\x00\x00" + exif_block([(0x0112, 3, 1, struct.pack("<HH", 6, 0))])
    yield "PNG eXIf", _save(small(), "PNG", exif=exif)
    rows = (b"\x00" + bytes(range(72))) * 17
    texts = [
        (b"zTXt", b"a\x00\x00" + zlib.compress(b"text " * 99)),
        (b"tEXt", b"Raw profile type exif\x00\nexif\n 8\n4949"),
        (b"iTXt", b"a\x00\x01\x00en\x00b\x00" + zlib.compress("文字".encode() * 9)),
        (b"gAMA", (45455).to_bytes(4)),
        (b"cHRM", bytes(32)),
        (b"sRGB", b"\x00"),
        (b"pHYs", bytes(9)),
    ]
    yield "PNG texts", png(24, 17, texts, rows=rows)
    yield "PNG interlaced", png(24, 17, [], rows=bytes(2000), interlaced=True)
    yield "PNG 16-bit RGB", png(24, 17, [], rows=(b"\x00" + bytes(range(144))) * 17, depth=16)


def _animated() -> Iterator[tuple[str, bytes]]:
    frames = [small(), small().rotate(90), small().rotate(180)]
    rest: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    yield "GIF one frame", _save(frames[0], "GIF")
    yield "GIF clear", _save(small("P"), "GIF", transparency=3)
    yield "GIF interlaced", _save(small("L"), "GIF", interlace=True)
    yield "GIF animated", _save(frames[0], "GIF", **rest, duration=9, loop=0, disposal=2)
    yield "PNG animated", _save(frames[0], "PNG", **rest)
    yield "WEBP animated", _save(frames[0], "WEBP", **rest)
    yield "TIFF pages", _save(frames[0], "TIFF", **rest)
    if features.check("avif"):
        yield "AVIF animated", _save(frames[0], "AVIF", **rest, speed=10)


def _tiff() -> Iterator[tuple[str, bytes]]:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"):
        yield f"TIFF {mode}", _save(small(mode), "TIFF")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        try:
            yield f"TIFF {compression}", _save(small(), "TIFF", compression=compression)
        except (OSError, KeyError):  # this build of libtiff lacks the codec
            continue
    for compression in ("group3", "group4", "tiff_ccitt"):
        yield f"TIFF {compression}", _save(small("1"), "TIFF", compression=compression)
    yield "TIFF LZW predictor", _save(small(), "TIFF", compression="tiff_lzw", tiffinfo={317: 2})
    yield "TIFF big", _save(small(), "TIFF", big_tiff=True)
    yield "TIFF big-endian", _big_endian_tiff()
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    yield "TIFF turned", _save(small(), "TIFF", exif=exif)


def _big_endian_tiff() -> bytes:
    entries = [(256, 4), (257, 4), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1), (278, 4), (279, 16)]
    body = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in entries)
    head = b"MM\x00*" + struct.pack(">IH", 8, len(entries)) + body + bytes(4)
    return head.ljust(200, b"\x00") + bytes(range(0, 256, 16))


def _modern() -> Iterator[tuple[str, bytes]]:
    yield "WEBP lossy", _save(small(), "WEBP", quality=50)
    yield "WEBP lossless", _save(small(), "WEBP", lossless=True)
    yield "WEBP alpha", _save(small("RGBA"), "WEBP")
    turned = exif_block([(0x0112, 3, 1, struct.pack("<HH", 6, 0))])
    yield "WEBP EXIF", _save(small(), "WEBP", exif=b"Exif\x00\x00" + turned, icc_profile=b"none", xmp=b"<x/>")
    if features.check("avif"):
        for name, image, options in (
            ("RGB", small(), {}),
            ("4:4:4", small(), {"subsampling": "4:4:4", "quality": 90}),
            ("alpha", small("RGBA"), {}),
            ("EXIF", small(), {"exif": turned}),
            ("large", small(size=(96, 64)), {}),
        ):
            yield f"AVIF {name}", _save(image, "AVIF", speed=10, **options)
    if features.check("jpg_2000"):
        for mode in ("L", "LA", "RGB", "RGBA", "I;16"):
            yield f"JPEG2000 {mode}", _save(small(mode), "JPEG2000")
        yield "JPEG2000 stream", _save(small(), "JPEG2000", no_jp2=True)
        yield "JPEG2000 lossy", _save(small(size=(64, 48)), "JPEG2000", irreversible=True, quality_layers=[20, 5])
        yield "JPEG2000 tiles", _save(small(size=(64, 48)), "JPEG2000", tile_size=(16, 16))
    try:
        from pillow_heif import from_pillow
    except ImportError:
        return
    buffer = io.BytesIO()
    try:
        from_pillow(small(size=(64, 48))).save(buffer)
    except Exception:  # noqa: BLE001  # a build without an encoder
        return
    yield "HEIF", buffer.getvalue()


def _windows() -> Iterator[tuple[str, bytes]]:
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield f"BMP {mode}", _save(small(mode), "BMP")
    yield "DIB RGB", _save(small(), "DIB")
    for bits, codes in ((8, b"\x08\x01\x00\x00" * 4 + b"\x00\x01"), (4, b"\x08\x12\x00\x00" * 4 + b"\x00\x01")):
        compression = 1 if bits == 8 else 2
        palette = bytes(4 * 2**bits)
        offset = 14 + 40 + len(palette)
        info = struct.pack("<IiiHHIIiiII", 40, 8, 4, 1, bits, compression, len(codes), 0, 0, 0, 0)
        yield (
            f"BMP RLE{bits}",
            b"BM" + struct.pack("<IHHI", offset + len(codes), 0, 0, offset) + info + palette + codes,
        )
    top_down = bytearray(_save(small(), "BMP"))
    top_down[22:26] = struct.pack("<i", -17)
    yield "BMP top down", bytes(top_down)
    core = struct.pack("<IHHHH", 12, 4, 4, 1, 24) + bytes(48)
    yield "BMP core header", b"BM" + struct.pack("<IHHI", 14 + len(core), 0, 0, 26) + core
    yield "ICO PNG", _save(small("RGBA", (32, 32)), "ICO", sizes=[(16, 16), (32, 32)])
    yield "ICO BMP", _save(small("RGBA", (32, 32)), "ICO", sizes=[(16, 16)], bitmap_format="bmp")
    icon = bytearray(_save(small("RGBA", (32, 32)), "ICO", sizes=[(16, 16)], bitmap_format="bmp"))
    icon[2] = 2
    yield "CUR", bytes(icon)


def _written() -> Iterator[tuple[str, bytes]]:
    """Formats off the list that Pillow can write."""
    for form, modes in {
        "BLP": ("P",),
        "EPS": ("L", "RGB", "CMYK"),
        "IM": ("1", "L", "P", "RGB", "YCbCr", "F"),
        "MSP": ("1",),
        "PALM": ("1", "P"),
        "PCX": ("1", "L", "P", "RGB"),
        "PDF": ("1", "L", "RGB", "CMYK"),
        "PPM": ("1", "L", "RGB", "RGBA", "I;16", "F"),
        "QOI": ("RGB", "RGBA"),
        "SGI": ("L", "RGB", "RGBA"),
        "SPIDER": ("F",),
        "TGA": ("1", "L", "LA", "P", "RGB", "RGBA"),
        "XBM": ("1",),
    }.items():
        for mode in modes:
            yield f"{form} {mode}", _save(small(mode, (16, 16)), form)
    part = _save(small("RGBA", (16, 16)), "PNG")
    yield "ICNS", b"icns" + struct.pack(">I4sI", 16 + len(part), b"icp4", 8 + len(part)) + part
    yield "BLP BLP2", _save(small("P", (16, 16)), "BLP", blp_version="BLP2")
    yield "BLP encoding 9", _blp(9)
    yield "TGA run lengths", _save(small(), "TGA", compression="tga_rle")
    yield "PPM plain", b"P3\n2 2\n255\n0 1 2 3 4 5 6 7 8 9 10 11\n"
    yield "EPS endless", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n{} loop\n"


def _blp(encoding: int) -> bytes:
    head = b"BLP2" + struct.pack("<iBBBB", 1, encoding, 8, 7, 1) + struct.pack("<II", 16, 16)
    return head + struct.pack("<16I", *([1172] * 16)) + struct.pack("<16I", *([64] * 16)) + bytes(1024) + bytes(400)


def _dds() -> Iterator[tuple[str, bytes]]:
    for mode in ("L", "LA", "RGB", "RGBA"):
        yield f"DDS {mode}", _save(small(mode, (16, 16)), "DDS")
    for code in DDS_CODES:
        extra = struct.pack("<5I", 98, 3, 0, 1, 0) if code == b"DX10" else b""
        pixel_format = struct.pack("<II4sIIIII", 32, 4, code, 0, 0, 0, 0, 0)
        head = struct.pack("<7I44x", 124, 0x1007, 16, 16, 0, 0, 0)
        yield (
            f"DDS {code.decode().strip(chr(0)) or 'none'}",
            b"DDS " + head + pixel_format + bytes(20) + extra + bytes(256),
        )


def _headers() -> Iterator[tuple[str, bytes]]:
    """Formats that Pillow opens and does not write, as small as its readers allow, and what only looks like images."""
    pcx = _save(small("L", (16, 16)), "PCX")
    yield "DCX", struct.pack("<III", 0x3ADE68B1, 12, 0) + pcx
    cards = ["SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2"]
    cards += ["NAXIS1  =                    8", "NAXIS2  =                    8", "END"]
    yield "FITS", "".join(card.ljust(80) for card in cards).encode().ljust(2880) + bytes(64)
    frame = struct.pack("<IHH8x", 16 + 6 + 64, 0xF1FA, 1) + struct.pack("<IH", 6 + 64, 16) + bytes(64)
    fli = struct.pack("<IHHHHHHI", 128 + len(frame), 0xAF11, 1, 8, 8, 8, 3, 5).ljust(128, b"\x00")
    yield "FLI", fli + frame
    yield (
        "FTEX",
        b"FTEX"
        + struct.pack("<iiiii", 0x30, 8, 8, 1, 1)
        + struct.pack("<ii", 1, 32)
        + struct.pack("<i", 192)
        + bytes(192),
    )
    yield "GBR", struct.pack(">5I4sI", 28 + 6, 2, 8, 8, 1, b"GIMP", 10) + b"brush\x00" + bytes(64)
    yield "IMT", b"* an image\nwidth 8\nheight 8\npixel n8\n\x0c" + bytes(64)
    fields = {(3, 20): b"\x00\x08", (3, 30): b"\x00\x08", (3, 60): b"\x01\x00", (3, 120): b"\x01", (8, 10): bytes(64)}
    parts = (b"\x1c" + bytes(tag) + struct.pack(">H", len(value)) + value for tag, value in fields.items())
    yield "IPTC", b"".join(parts)
    area = [0] * 65
    area[2], area[9], area[10], area[11], area[14], area[15], area[34] = 4, 8, 8, 1, 1, 0, 256
    yield "MCIDAS", struct.pack(">64i", *area[1:]) + bytes(64)
    yield "MPEG", b"\x00\x00\x01\xb3" + bytes((1, 0, 16)) + bytes(30)
    pcd = bytearray(2048 + 6 * 1024)
    pcd[2048:2052] = b"PCD_"
    yield "PCD", bytes(pcd)
    pixar = bytearray(1024)
    pixar[:4], pixar[416:420], pixar[424:428] = b"\x80\xe8\x00\x00", struct.pack("<HH", 8, 8), struct.pack("<HH", 14, 2)
    yield "PIXAR", bytes(pixar) + bytes(192)
    psd = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 8, 8, 8, 3) + bytes(12)
    yield "PSD", psd + b"\x00\x00" + bytes(192)
    yield "PSD packed", psd + b"\x00\x01" + struct.pack(">24H", *([2] * 24)) + b"\xf9\x07" * 24
    yield "SUN", struct.pack(">8I", 0x59A66A95, 8, 8, 24, 192, 1, 0, 0) + bytes(192)
    yield "SUN run lengths", struct.pack(">8I", 0x59A66A95, 8, 8, 8, 64, 2, 0, 0) + b"\x80\x07\x01" * 8
    xpm = [
        "static char * a[] = {\n",
        '"4 2 2 1",\n',
        '"a c #000000",\n',
        '"b c #ffffff",\n',
        '"abab",\n',
        '"baba"\n',
        "};\n",
    ]
    yield "XPM", ("/* XPM */\n" + "".join(xpm)).encode()
    yield "XVTHUMB", b"P7 332\n#XVVERSION\n#END_OF_COMMENTS\n8 8 255\n" + bytes(64)
    yield "WAL", b"name".ljust(32, b"\x00") + struct.pack("<II4I", 8, 8, 100, 0, 0, 0) + bytes(164)
    wmf = (
        b"\xd7\xcd\xc6\x9a\x00\x00" + struct.pack("<hhhhHIH", 0, 0, 100, 100, 96, 0, 0) + b"\x01\x00\t\x00" + bytes(40)
    )
    yield "WMF", wmf
    emf = bytearray(108)
    emf[:4], emf[40:44] = b"\x01\x00\x00\x00", b" EMF"
    emf[8:24], emf[24:40] = struct.pack("<4i", 0, 0, 100, 100), struct.pack("<4i", 0, 0, 2540, 2540)
    yield "WMF EMF", bytes(emf)
    yield "GRIB", b"GRIB\x00\x00\x00\x01" + bytes(40)
    yield "BUFR", b"BUFR" + bytes(40)
    yield "HDF5", b"\x89HDF\r\n\x1a\n" + bytes(40)
    yield "other JPEG XL", b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(40)
    yield "other SVG", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
    yield "other HTML", b"<!doctype html><title>404</title>"
    yield "other JSON", b'{"error": "no such key"}'
    yield "other ZIP", b"PK\x03\x04" + bytes(40)
    yield "other gzip", b"\x1f\x8b\x08" + bytes(40)
