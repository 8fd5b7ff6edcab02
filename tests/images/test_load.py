"""The whole way of an image: what it costs, and what draft decoding changes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.malformed_inputs import encoded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwenvl_kit.errors import RowError
from qwenvl_kit.images import ImageLoader, Sizing, classify
from qwenvl_kit.options import Config
from qwenvl_kit.types import LoadedImage, PatchGeometry

OUTCOMES = ("image", "fetch", "decode", "resize")


def jpeg(size: tuple[int, int], **options: object) -> bytes:
    x, y = np.meshgrid(np.linspace(0, 6, size[0]), np.linspace(0, 4, size[1]))
    waves = np.stack([np.sin(x) * 127 + 128, np.cos(y) * 127 + 128, np.sin(x * y) * 127 + 128], axis=-1)
    buffer = io.BytesIO()
    Image.fromarray(waves.astype(np.uint8)).save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


def loaded(cell: object, **options: object) -> LoadedImage:
    config = Config(**options)  # type: ignore[arg-type]
    (source,) = classify(cell, config.image_src_type)
    return ImageLoader.of(config, Sizing.of(config, PatchGeometry())).load(source)


def test_equal_bytes_have_equal_digests_however_they_came(tmp_path: Path) -> None:
    import base64

    data = jpeg((100, 80))
    path = tmp_path / "a.jpg"
    path.write_bytes(data)

    digests = {loaded(cell).digest for cell in (data, str(path), path.as_uri(), base64.b64encode(data).decode())}

    assert len(digests) == 1
    assert loaded(jpeg((100, 81))).digest not in digests


def test_equal_pixels_of_another_shape_are_another_image() -> None:
    assert loaded(np.zeros((40, 80, 3), np.uint8)).digest != loaded(np.zeros((80, 40, 3), np.uint8)).digest


def test_draft_decoding_changes_pixels_a_little_and_sizes_not_at_all() -> None:
    data = jpeg((1600, 1200))

    exact = loaded(data, max_pixels=200 * 200)
    draft = loaded(data, max_pixels=200 * 200, image_decode="draft")

    assert exact.size == draft.size
    assert exact.source_size == draft.source_size == (1200, 1600)
    difference = np.abs(exact.pixels.astype(int) - draft.pixels.astype(int))
    assert 0 < difference.mean() < 4


def test_draft_decoding_never_enlarges_what_it_made_small() -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    data = jpeg((1600, 400), exif=turned)

    image = loaded(data, resized_height=1600, resized_width=400, image_decode="draft")

    assert image.source_size == (1600, 400)
    assert np.array_equal(image.pixels, loaded(data, resized_height=1600, resized_width=400).pixels)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("image_decode", ["exact", "draft"])
def test_an_image_on_its_side_is_not_squeezed(form: str, image_decode: str) -> None:
    on_its_side = Image.Exif()
    on_its_side[0x0112] = 6
    data = encoded(Image.new("RGB", (280, 112)), form, exif=on_its_side)

    image = loaded(data, image_decode=image_decode)

    assert image.source_size == image.size == (280, 112)


def test_faults_name_the_source(tmp_path: Path) -> None:
    path = tmp_path / "needle.png"
    path.write_bytes(encoded(Image.new("L", (201, 1)), "PNG"))

    with pytest.raises(RowError, match=r"needle\.png: Aspect ratio 201:1 of a 201×1 image"):
        loaded(str(path))
    with pytest.raises(RowError, match=r"needle\.png: The image of 201×1 = 201 pixels"):
        loaded(str(path), max_image_pixels=200)


def test_what_gives_an_array_is_an_image() -> None:
    class Tensor:
        def __array__(self, *_: object, **__: object) -> np.ndarray:
            return np.full((56, 56, 3), 7, np.uint8)

    assert (loaded(Tensor()).pixels == 7).all()


def test_a_limit_given_alone_moves_the_other_where_they_would_cross() -> None:
    geometry = PatchGeometry(min_pixels=7056, max_pixels=10752)

    below = Sizing.of(Config(max_pixels=4000), geometry).geometry
    above = Sizing.of(Config(min_pixels=20_000), geometry).geometry

    assert below.min_pixels <= below.max_pixels == 4000
    assert above.max_pixels >= above.min_pixels == 20_000


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_an_image_or_a_row_error(data: bytes) -> None:
    if not data:
        return
    assert outcome(lambda: loaded(data)) in ("image", "decode", "resize")


@given(st.data())
def test_a_damaged_file_is_an_image_or_a_row_error(data: st.DataObject) -> None:
    for make in (jpeg, _png):
        whole = bytearray(make((60, 40)))
        for _ in range(data.draw(st.integers(1, 8))):
            whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        cut = data.draw(st.integers(1, len(whole)))
        assert outcome(lambda data=bytes(whole[:cut]): loaded(data)) in ("image", "decode", "resize")


def _png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).save(buffer, "PNG")
    return buffer.getvalue()


@given(st.text(max_size=60))
def test_arbitrary_text_is_an_image_or_a_row_error(text: str) -> None:
    loader = ImageLoader.of(Config(timeout_s=0.001, allow_private_hosts=False), Sizing(PatchGeometry()))

    assert outcome(lambda: [loader.load(source) for source in classify(text)]) in OUTCOMES


def outcome(work: Callable[[], object]) -> str:
    """``image``, or the stage of the row error; anything else that is raised is a fault of ours."""
    try:
        work()
    except RowError as error:
        return error.stage
    return "image"


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_paths_that_are_no_files_say_where_they_were_looked_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path if kind == "folder" else tmp_path / "missing.png"

    with pytest.raises(RowError, match=str(path)):
        loaded(str(path))
