"""Whole pixels with odd metadata, odd levels, and images that share a file."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.malformed_inputs import encoded, noise
from PIL import Image, features

from qwenvl_kit import RowErrorWarning
from qwenvl_kit.images.arrays import decode_array
from qwenvl_kit.images.decode import decode_bytes, decode_pil

MOST = 10**6
ECHO = {"backend": "echo", "progress": False}
IMAGE = noise(80, 60, 0)


def exif(*entries: bytes) -> bytes:
    """Orientation 6, and more."""
    every = [struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0), *entries]
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(every)) + b"".join(every) + b"\0\0\0\0"


def png_with(kind: bytes, body: bytes) -> bytes:
    whole = encoded(IMAGE, "PNG")
    return (
        whole[:33]
        + struct.pack(">I", len(body))
        + kind
        + body
        + struct.pack(">I", zlib.crc32(kind + body))
        + whole[33:]
    )


LONG = zlib.compress(b"a" * 2_000_000)


@pytest.mark.parametrize(
    "data",
    [
        encoded(IMAGE, "JPEG", exif=exif(struct.pack("<HHIhh", 0x0128, 8, 1, -1, 0))),
        encoded(IMAGE, "JPEG", exif=exif(struct.pack("<HHIi", 0x0100, 9, 1, -5))),
        encoded(IMAGE, "JPEG", exif=exif(struct.pack("<HHI4s", 0xA005, 2, 4, b"abc\0"))),
        encoded(IMAGE, "JPEG", exif=exif(struct.pack("<HHIf", 0x010E, 11, 1, 1.5))),
    ],
    ids=["negative-short", "negative-width", "text-for-offset", "float"],
)
def test_exif_that_cannot_be_written_back_still_turns_the_image(data: bytes) -> None:
    pixels, size = decode_bytes(data, "a.jpg", max_image_pixels=MOST)

    assert pixels.shape == (80, 60, 3)
    assert size == (80, 60)


@pytest.mark.parametrize(
    "data",
    [
        encoded(IMAGE, "WEBP", lossless=True, exif=b"Exif\0\0garbage here"),
        png_with(b"eXIf", b"garbage here"),
        png_with(b"zTXt", b"workflow\0\0" + LONG),
        png_with(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
        png_with(b"iCCP", b"icc\0\0" + LONG),
        png_with(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 4\nzzzz")),
    ],
    ids=["webp", "eXIf", "zTXt", "iTXt", "iCCP", "raw-profile"],
)
def test_metadata_that_cannot_be_read_leaves_the_pixels(data: bytes) -> None:
    pixels, _ = decode_bytes(data, "a", max_image_pixels=MOST)

    assert (pixels == np.asarray(IMAGE)).all()


def test_a_clear_level_of_16_bits_is_white() -> None:
    levels = np.full((20, 20), 9000, np.uint16)
    whole = encoded(Image.fromarray(levels), "PNG")
    clear = struct.pack(">H", 9000)
    see_through = (
        whole[:33]
        + struct.pack(">I", 2)
        + b"tRNS"
        + clear
        + struct.pack(">I", zlib.crc32(b"tRNS" + clear))
        + whole[33:]
    )

    assert decode_bytes(whole, "a", max_image_pixels=MOST)[0].max() == 35
    assert decode_bytes(see_through, "a", max_image_pixels=MOST)[0].min() == 255


def test_whole_numbers_of_32_bits_are_levels_or_refused() -> None:
    levels = np.arange(256, dtype=np.int32).reshape(16, 16)

    seen = decode_pil(Image.fromarray(levels), max_image_pixels=MOST)

    assert (seen[:, :, 0] == levels).all()
    with pytest.raises(Exception, match="levels range from"):
        decode_pil(Image.fromarray(levels - 1), max_image_pixels=MOST)


def test_uint16_of_either_byte_order_is_the_same() -> None:
    levels = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)

    assert (
        decode_array(levels.astype(">u2"), max_image_pixels=MOST)
        == decode_array(levels.astype("<u2"), max_image_pixels=MOST)
    ).all()


def test_members_of_one_archive_are_read_as_one_by_one(tmp_path: Path) -> None:
    images = [encoded(noise(60 + number, 40, number), "PNG") for number in range(40)]
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for number, data in enumerate(images):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    wanted = pd.Series([Image.open(io.BytesIO(data)) for data in images]).vl.caption(**ECHO)

    with tarfile.open(tmp_path / "images.tar") as tar:
        opened = [Image.open(file) for member in tar if (file := tar.extractfile(member)) is not None]
        given = pd.Series(opened).vl.caption(**ECHO)

    assert given.tolist() == wanted.tolist()


def test_photographs_of_phones_are_read_where_their_reader_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(IMAGE).save(file, quality=-1)

    frame = pd.Series([file.getvalue(), encoded(IMAGE, "PNG")]).vl.run(**ECHO)

    assert frame["status"].tolist() == ["ok", "ok"]
    assert frame["height"].tolist() == [60, 60] or frame["height"].nunique() == 1


def test_damaged_files_of_one_flipped_bit_hurt_nobody_else() -> None:
    form = "AVIF" if features.check("avif") else "TIFF"
    whole = bytearray(encoded(noise(64, 64, 0), form))
    random = np.random.default_rng(0)
    cells: list[bytes] = []
    for _ in range(60):
        at, bit = int(random.integers(len(whole))), int(random.integers(8))
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        cells += [bytes(damaged), encoded(noise(20, 20, len(cells)), "PNG")]

    with pytest.warns(RowErrorWarning):
        frame = pd.Series(cells).vl.run(**ECHO)

    assert set(frame["status"][1::2]) == {"ok"}
    assert set(frame["status"][::2]) <= {"ok", "error"}
