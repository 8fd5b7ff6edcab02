"""What the first bytes of a file tell: its format, its size, and whether it is decoded in this process."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from helpers.malformed_inputs import encoded, jpeg_of_scans, noise
from helpers.needs import need_format
from PIL import Image

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.formats import FORMATS
from qwenvl_kit.images.probe import MAX_PNG_CHUNKS, probe

MOST = 10**6


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_sizes_are_read_without_decoding(form: str) -> None:
    found = probe(encoded(noise(60, 80, 0), form), max_image_pixels=MOST)

    assert (found.format, found.size, found.is_short) == (form, (80, 60), True)


@pytest.mark.parametrize(
    ("form", "feature"), [("TIFF", "zlib"), ("AVIF", "avif"), ("JPEG2000", "jpg_2000"), ("ICO", "zlib")]
)
def test_what_may_take_long_is_decoded_elsewhere(form: str, feature: str) -> None:
    need_format(form, feature)

    found = probe(encoded(noise(64, 64, 0), form), max_image_pixels=MOST)

    assert (found.format, found.is_short) == (form, False)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [12, 20, 26, 30])
def test_files_cut_in_their_header_are_left_to_the_decoder(form: str, part: int) -> None:
    assert probe(encoded(noise(60, 80, 0), form)[:part], max_image_pixels=MOST).format in FORMATS


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"\xc5\xd0\xd3\xc6" + bytes(30), "PostScript"),
        (b"DDS " + bytes(124), "DDS"),
        (b"BLP2" + bytes(200), "BLP"),
        (b"8BPS" + bytes(30), "PSD"),
        (b"SIMPLE  =                    T" + bytes(3000), "FITS"),
        (b"qoif" + bytes(20), "QOI"),
        (b"P6 1 1 255\n\0\0\0", "PPM"),
        (b"GRIB" + bytes(96), "GRIB"),
        (b"\x89HDF\r\n\x1a\n" + bytes(92), "HDF5"),
        (b"%PDF-1.7", "PDF"),
        (b"<!doctype html><title>403</title>", "HTML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (bytes(100), ", ".join(FORMATS)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_formats_off_the_list_are_refused_by_name_and_never_opened(
    data: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", None)

    with pytest.raises(RowError) as caught:
        probe(data, max_image_pixels=MOST)

    assert caught.value.stage == "decode"
    assert name in caught.value.message


def test_scans_that_take_long_are_counted() -> None:
    usual = encoded(noise(2000, 2000, 0), "JPEG", progressive=True)

    assert probe(usual, max_image_pixels=10 * MOST).is_short
    assert not probe(jpeg_of_scans(2000), max_image_pixels=10 * MOST).is_short


def test_chunks_without_number_are_refused() -> None:
    head = encoded(noise(8, 8, 0), "PNG")
    many = head[:33] + chunk(b"tEXt", b"k\0v") * (MAX_PNG_CHUNKS + 1) + head[33:]

    with pytest.raises(RowError, match="chunks"):
        probe(many, max_image_pixels=MOST)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "GIF", "JPEG"])
def test_the_limit_of_pixels_holds_before_a_file_is_opened(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(200, 100, 0), form)
    monkeypatch.setattr(Image, "open", None)

    with pytest.raises(RowError, match=r"200×100 = 20000 pixels exceeds max_image_pixels=1000"):
        probe(data, max_image_pixels=1000)


def test_the_largest_image_of_an_icon_counts_whatever_its_directory_says() -> None:
    whole = encoded(noise(256, 256, 0), "ICO", sizes=[(256, 256)])
    lying = whole[:6] + bytes([1, 1]) + whole[8:]

    with pytest.raises(RowError, match="max_image_pixels=1000"):
        probe(lying, max_image_pixels=1000)


def test_a_canvas_of_webp_is_refused_before_it_is_allocated() -> None:
    file, frames = io.BytesIO(), [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(file, "WEBP", lossless=True, save_all=True, append_images=frames[1:])
    data = bytearray(file.getvalue())
    data[24:30] = (16382).to_bytes(3, "little") * 2

    with pytest.raises(RowError, match="16383×16383"):
        probe(bytes(data), max_image_pixels=MOST)
