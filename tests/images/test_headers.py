"""Sizes of images from the first bytes of their files: those that a run finds, without decoding anything."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.needs import need_format
from PIL import Image

from qwenvl_kit.errors import RowError
from qwenvl_kit.images import ImageLoader, Sizing, classify
from qwenvl_kit.images.headers import HEAD_BYTES, HeaderReader
from qwenvl_kit.options import FetchOptions
from qwenvl_kit.types import PatchGeometry

OPTIONS = FetchOptions(max_image_bytes=3_000_000)
READER = HeaderReader.of(OPTIONS)
LOADER = ImageLoader.of(OPTIONS, Sizing(PatchGeometry()))


def encoded(kind: str, size: tuple[int, int] = (90, 61), *, orientation: int = 1, **options: Any) -> bytes:
    """Return a file of noise, larger than the head that is read."""
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, exif=exif, **options)
    return file.getvalue()


def size(cell: object, reader: HeaderReader = READER) -> tuple[int, int]:
    (source,) = classify(cell)
    return reader.size(source)


@pytest.fixture(autouse=True)
def no_decoders_left() -> Iterator[None]:
    """End the decoding processes that a load starts: other tests count those of this process."""
    yield
    ImageLoader.close_idle()


def run_size(cell: object) -> tuple[int, int]:
    (source,) = classify(cell)
    return LOADER.load(source).source_size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_size_is_the_one_that_a_run_finds(tmp_path: Path, kind: str, orientation: int) -> None:
    if kind == "AVIF":
        need_format("AVIF", "avif")
    file = tmp_path / "a.img"
    file.write_bytes(encoded(kind, (700, 310), orientation=orientation, **({"quality": 98} if kind == "JPEG" else {})))
    assert file.stat().st_size > HEAD_BYTES or kind in ("AVIF", "WEBP")

    assert size(str(file)) == run_size(str(file))
    assert size(file.read_bytes()) == run_size(str(file))


def test_pixels_are_neither_read_nor_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(encoded("JPEG", (700, 500), quality=98)[: HEAD_BYTES + 10])  # the rest of the file is missing
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))

    assert size(str(file)) == (500, 700)


def test_a_header_behind_much_metadata_is_found_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(encoded("JPEG", (70, 50), icc_profile=bytes(200_000)))

    assert size(str(file)) == (50, 70)


def test_pixels_in_memory_have_their_upright_size() -> None:
    turned = Image.open(io.BytesIO(encoded("JPEG", (80, 60), orientation=6)))

    assert size(turned) == run_size(turned) == (80, 60)
    assert size(np.zeros((50, 40, 3), np.uint8)) == (50, 40)
    assert size(base64.b64encode(encoded("PNG", (30, 20))).decode()) == (20, 30)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (b"<html>" + bytes(200), "HTML page"),
        (encoded("JPEG")[:60], "Truncated"),
        (np.zeros((3, 50, 40), np.uint8), "channels first"),
        (np.zeros((4000, 4000), np.uint8), "max_image_pixels=1000000"),
        ("no-such-file.jpg", "does not exist"),
    ],
)
def test_what_has_no_size_is_an_error_of_its_own_row(cell: object, message: str) -> None:
    with pytest.raises(RowError, match=message):
        size(cell, HeaderReader.of(FetchOptions(max_image_pixels=1_000_000)))


def test_of_a_url_only_the_first_bytes_are_asked_for(ranges: Any) -> None:
    assert size(f"{ranges.url}/honest") == (400, 600)
    assert ranges.asked == [f"bytes=0-{HEAD_BYTES - 1}"]
    assert ranges.sent[0] == HEAD_BYTES


def test_a_server_that_ignores_ranges_is_left_after_the_first_bytes(ranges: Any) -> None:
    assert size(f"{ranges.url}/deaf") == (400, 600)
    assert len(ranges.asked) == 1


def test_a_remote_file_beyond_the_limit_is_refused_before_it_is_read(ranges: Any) -> None:
    with pytest.raises(RowError, match="max_image_bytes=100000"):
        size(f"{ranges.url}/honest", HeaderReader.of(FetchOptions(max_image_bytes=100_000)))
