"""From bytes, images and arrays to upright RGB."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from helpers.malformed_inputs import encoded, noise
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.arrays import decode_array
from qwenvl_kit.images.decode import decode_bytes, decode_pil, decode_resized, read_size
from qwenvl_kit.images.resize import Sizing
from qwenvl_kit.options import Config
from qwenvl_kit.types import PatchGeometry

T = Image.Transpose
TURNS = {
    1: (),
    2: (T.FLIP_LEFT_RIGHT,),
    3: (T.ROTATE_180,),
    4: (T.FLIP_TOP_BOTTOM,),
    5: (T.TRANSPOSE,),
    6: (T.ROTATE_90,),
    7: (T.TRANSVERSE,),
    8: (T.ROTATE_270,),
}
INVERSE = {T.ROTATE_90: T.ROTATE_270, T.ROTATE_270: T.ROTATE_90}
LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}


def decode(data: bytes, **options: Any) -> tuple[np.ndarray, tuple[int, int]]:
    return decode_bytes(data, "it", **{"max_image_pixels": 10**6, **options})


def error_message(data: bytes, **options: Any) -> str:
    with pytest.raises(RowError) as caught:
        decode(data, **options)
    assert caught.value.stage == "decode"
    assert caught.value.message.startswith("it: ")
    return caught.value.message


def of_pil(image: Image.Image) -> np.ndarray:
    return decode_pil(image, max_image_pixels=10**6)


def of_array(array: np.ndarray) -> np.ndarray:
    return decode_array(array, max_image_pixels=10**6)


def marked() -> np.ndarray:
    """An image that looks different whichever way it is turned, of even JPEG blocks."""
    pixels = np.zeros((48, 80, 3), np.uint8)
    pixels[:16, :16] = 255
    pixels[:16, 64:] = (255, 0, 0)
    pixels[32:, :16] = (0, 0, 255)
    return pixels


def turned(orientation: int, form: str, **options: Any) -> bytes:
    """The marked image stored so that its EXIF orientation turns it upright."""
    stored = Image.fromarray(marked())
    for turn in TURNS[orientation]:
        stored = stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(stored, form, exif=exif, **options)


# ------------------------------------------------------------------ upright


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("form", LOSSLESS)
def test_every_orientation_comes_out_upright_in_every_format(form: str, orientation: int) -> None:
    pixels, source_size = decode(turned(orientation, form, **LOSSLESS[form]))

    assert np.array_equal(pixels, marked())
    assert source_size == (48, 80), "the size that the aspect ratio is taken from is the upright one"


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("draft_size", [None, (24, 40)], ids=["exact", "draft"])
def test_every_orientation_of_a_jpeg_comes_out_upright_also_from_draft(
    orientation: int, draft_size: tuple[int, int] | None
) -> None:
    data = turned(orientation, "JPEG", quality=95)

    pixels, source_size = decode(data, draft_size=draft_size)

    expected = marked() if draft_size is None else marked()[::2, ::2]
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 12
    assert source_size == read_size(data) == (48, 80)


def test_a_draft_is_never_smaller_than_what_is_wanted() -> None:
    data = encoded(noise(160, 96, 0), "JPEG")

    assert [decode(data, draft_size=size)[0].shape[:2] for size in ((96, 160), (49, 81), (48, 80), (12, 20))] == [
        (96, 160),
        (96, 160),
        (48, 80),
        (12, 20),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("large_pixels", [0, 10**9], ids=["large", "small"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "I;16"])
@pytest.mark.parametrize("orientation", TURNS)
def test_every_image_is_resized_as_pillow_resizes_the_upright_one(
    monkeypatch: pytest.MonkeyPatch, orientation: int, mode: str, large_pixels: int
) -> None:
    monkeypatch.setattr("qwenvl_kit.images.decode.LARGE_PIXELS", large_pixels)
    image = noise(301, 563, 1).convert("L" if mode == "I;16" else mode)  # no whole number of bands
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    elif mode == "RGBA":
        image.putalpha(noise(301, 563, 2).convert("L"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = Image.fromarray(decode(encoded(image, "PNG"))[0])
    for turn in TURNS[orientation][::-1]:
        upright = upright.transpose(INVERSE.get(turn, turn))

    for size in ((56, 28), (28, 56), (560, 308), (308, 560), (588, 308), (1120, 616), (28, 616), (1120, 28)):
        sizing = Sizing.of(Config(resized_height=size[0], resized_width=size[1]), PatchGeometry(14, 2, 784, 10**6))
        pixels, source_size = decode_resized(encoded(image, "PNG", exif=exif), sizing, max_image_pixels=10**6)

        assert source_size == (upright.height, upright.width)
        assert np.array_equal(pixels, np.asarray(upright.resize(size[::-1], Image.Resampling.BICUBIC))), size


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation

    assert np.array_equal(decode(encoded(Image.fromarray(marked()), "PNG", exif=exif))[0], marked())


def test_broken_exif_leaves_the_image_also_where_warnings_are_errors() -> None:
    data = encoded(Image.fromarray(marked()), "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")

    with pytest.warns(UserWarning, match="EXIF"):
        assert np.array_equal(decode(data)[0], marked())
    assert np.array_equal(decode(data)[0], marked()), "here they are"


# ------------------------------------------------------------------ colours


@given(st.tuples(*[st.integers(0, 255)] * 4))
def test_alpha_lies_over_white(colour: tuple[int, int, int, int]) -> None:
    *levels, alpha = colour
    expected = [(level * alpha + 255 * (255 - alpha)) / 255 for level in levels]

    for pixels in (
        decode(encoded(Image.new("RGBA", (3, 2), colour), "PNG"))[0],
        of_array(np.full((2, 3, 4), colour, np.uint8)),
    ):
        assert pixels.shape == (2, 3, 3)
        assert np.abs(pixels[0, 0] - np.array(expected)).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "GIF"])
@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_see_through_colour_is_white_and_the_others_stay(form: str, mode: str) -> None:
    image = Image.new(mode, (4, 2), 0)
    if mode == "P":
        image.putpalette([9, 9, 9, 0, 200, 0])
    image.paste(1 if mode == "P" else 120, (2, 0, 4, 2))

    pixels, _ = decode(encoded(image, form, transparency=0))

    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 3].tolist() == ([0, 200, 0] if mode == "P" else [120, 120, 120])


def test_a_palette_with_an_alpha_of_its_own_lies_over_white() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([200, 0, 0, 0, 0, 200, 0, 0, 0])
    image.putdata([0, 1, 2])

    pixels, _ = decode(encoded(image, "PNG", transparency=bytes([0, 255, 128])))

    assert pixels[0].tolist() == [[255, 255, 255], [0, 0, 200], [127, 127, 127]]


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_is_seen_in_its_colours(form: str) -> None:
    image = Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK")

    pixels, _ = decode(encoded(image, form))

    assert np.abs(pixels[8, 8].astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("level", [0, 257, 32896, 65535])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_brightness(form: str, level: int) -> None:
    pixels, _ = decode(encoded(Image.fromarray(np.full((4, 4), level, np.uint16)), form))

    assert pixels.shape == (4, 4, 3)
    assert (pixels == level // 257).all()


def test_16_bit_grey_of_the_other_byte_order_is_turned_upright_too() -> None:
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 0, 65535))
    image.getexif()[0x0112] = 6

    assert of_pil(image)[:, :, 0].tolist() == [[0], [255]]


@pytest.mark.parametrize(
    ("levels", "seen"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 128.4, 300.0], [0, 128, 255]), ([-1.0, 0.2, 1.0], [0, 51, 255])],
    ids=["unit", "bytes", "below-0"],
)
def test_floats_are_seen_whether_they_end_at_1_or_at_255(levels: list[float], seen: list[int]) -> None:
    image = Image.fromarray(np.array([levels], np.float32))

    assert decode(encoded(image, "TIFF"))[0][0, :, 0].tolist() == seen


@pytest.mark.parametrize("level", [np.nan, np.inf])
def test_floats_without_a_level_are_refused(level: float) -> None:
    assert "NaN or infinite" in error_message(encoded(Image.fromarray(np.full((2, 2), level, np.float32)), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_images_of_every_mode_are_seen_and_left_as_they_are(mode: str) -> None:
    image = Image.new("RGB", (6, 4), "white").convert("RGBA").convert(mode) if mode == "RGBa" else None
    image = image or Image.new("RGB", (6, 4), "white").convert("L" if mode in ("LA", "PA") else "RGB").convert(mode)
    before = image.tobytes()

    assert of_pil(image).shape == (4, 6, 3)
    assert (of_pil(image) >= 250).all()
    assert (image.mode, image.tobytes()) == (mode, before)


# ------------------------------------------------------------------ frames


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_seen(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "black")]

    pixels, size = decode(encoded(frames[0], form, save_all=True, append_images=frames[1:]))

    assert size == (8, 8)
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() < 12


# ------------------------------------------------------------------ broken and huge


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_an_error_and_never_half_an_image(form: str, part: float) -> None:
    data = encoded(noise(64, 64, 3), form)

    assert error_message(data[: int(len(data) * part)])


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"", "Not an image"),
        (b"\n <!DOCTYPE html><html>", "HTML page"),
        (b"<HTML><body>404", "HTML page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?><svg/>", "SVG"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "header is broken"),
        (b"%PDF-1.7", "The format is PDF, which is not read"),
        (bytes(100), "Not an image"),
    ],
    ids=["empty", "html", "html-upper", "svg", "xml", "heif", "pdf", "zeros"],
)
def test_what_is_no_image_says_what_it_seems_to_be(data: bytes, hint: str) -> None:
    assert hint in error_message(data)


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    message = error_message(claims(1000, 1001))
    assert "1000×1001 = 1001000 pixels" in message
    assert "max_image_pixels=1000000" in message
    assert decode(encoded(Image.new("1", (1000, 1000)), "PNG"))[1] == (1000, 1000)


@pytest.mark.parametrize("over", [1.5, 3], ids=["pillow-warns", "pillow-raises"])
def test_pillows_own_limit_is_told_with_both_ways_to_raise_it(over: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(100 * 100 / over))

    message = error_message(encoded(Image.new("L", (100, 100)), "PNG"))

    assert "max_image_pixels" in message
    assert "PIL.Image.MAX_IMAGE_PIXELS" in message


def test_an_open_image_of_a_broken_file_is_an_error() -> None:
    data = encoded(noise(64, 64, 3), "PNG")
    with Image.open(io.BytesIO(data[: len(data) // 2])) as image, pytest.raises(RowError, match="Cannot decode"):
        of_pil(image)
    with pytest.raises(RowError, match="4096 pixels"):
        decode_pil(Image.new("L", (64, 64)), max_image_pixels=4095)


# ------------------------------------------------------------------ arrays


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4), (1, 1), (3, 3, 3), (4, 3, 3)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "full", "half"),
    [("u1", 255, 128), ("?", True, True), ("u2", 65535, 32896), ("f2", 1, 0.502), ("f4", 1, 0.502), ("f8", 1, 0.502)],
)
def test_arrays_of_each_kind_and_shape_are_seen(shape: tuple[int, ...], dtype: str, full: float, half: float) -> None:
    array = np.full(shape, half, dtype)
    if shape[2:] == (4,):
        array[..., 3] = full

    pixels = of_array(array)

    assert pixels.shape == (*shape[:2], 3)
    assert pixels.dtype == np.uint8
    assert (pixels == (255 if dtype == "?" else 128)).all()


@pytest.mark.parametrize("view", [np.s_[::-1], np.s_[:, ::-1], np.s_[::2, ::3], np.s_[..., ::-1]], ids=str)
def test_views_are_seen_as_they_look(view: Any) -> None:
    array = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3)

    assert np.array_equal(of_array(array[view]), array[view].copy())


@pytest.mark.parametrize(
    ("array", "hint"),
    [
        (np.zeros((3, 56, 56), np.uint8), "moveaxis"),
        (np.zeros((1, 56, 56)), "moveaxis"),
        (np.zeros((4, 56, 56, 3), np.uint8), "shape"),
        (np.zeros((56, 56, 2), np.uint8), "shape"),
        (np.zeros((56, 0, 3), np.uint8), "shape"),
        (np.zeros(56, np.uint8), "shape"),
        (np.zeros((), np.uint8), "shape"),
        (np.full((4, 4), 1.01), "0 to 1"),
        (np.full((4, 4), -0.01), "0 to 1"),
        (np.full((4, 4), np.nan), "0 to 1"),
        (np.full((4, 4), 200, np.int64), "uint8"),
        (np.zeros((4, 4), np.complex64), "uint8"),
        (np.zeros((4, 4), "M8[s]"), "uint8"),
        (np.full((4, 4), "a"), "uint8"),
        (np.zeros((4, 4), object), "uint8"),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else "",
)
def test_arrays_that_are_no_images_say_what_to_give(array: np.ndarray, hint: str) -> None:
    with pytest.raises(RowError, match=hint) as caught:
        of_array(array)
    assert caught.value.stage == "decode"


def test_too_large_an_array_is_refused() -> None:
    with pytest.raises(RowError, match="max_image_pixels=99"):
        decode_array(np.zeros((10, 10), np.uint8), max_image_pixels=99)


@pytest.mark.parametrize("data", [b"", b"rubbish", b"\xff\xd8\xff\xe0"], ids=repr)
def test_no_size_is_read_where_there_is_none(data: bytes) -> None:
    assert read_size(data) is None


def claims(width: int, height: int) -> bytes:
    """A PNG whose header promises more than there is."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + start + struct.pack(">I", 9) + b"IDAT"
