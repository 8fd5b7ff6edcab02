"""A large image is resized in bands, over itself: its pixels are those of Pillow, and its memory is its own."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from helpers.malformed_inputs import noise
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwenvl_kit.images.resize_in_bands import resize_in_bands
from qwenvl_kit.images.rgb import upright_rgb

SIDES = st.integers(1, 100)  # several bands of 16 lines
MODES = ["RGB", "RGBA", "CMYK", "L", "LA", "P", "PA", "1", "YCbCr", "RGBa", "I;16", "F"]


def image_of(mode: str, width: int, height: int) -> Image.Image:
    image = noise(width, height, 1)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode == "PA":
        image = image.convert("P")
    if mode in ("RGBA", "LA", "PA", "RGBa"):
        image.putalpha(noise(width, height, 2).convert("L"))
    return image.convert(mode)


@pytest.mark.parametrize("mode", MODES)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 9))
def test_pixels_are_those_of_the_upright_image_resized_by_pillow(
    mode: str, width: int, height: int, target_width: int, target_height: int, orientation: int
) -> None:
    image = image_of(mode, width, height)
    wanted = upright_rgb(image.copy(), orientation).resize((target_width, target_height), Image.Resampling.BICUBIC)

    with mock.patch("qwenvl_kit.images.rgb._BAND_PIXELS", 16):
        pixels = resize_in_bands(image, orientation, (target_height, target_width))

    assert np.array_equal(pixels, np.asarray(wanted))


def test_a_see_through_colour_is_laid_over_white_once() -> None:
    image = noise(300, 200, 3)
    image.paste((0, 0, 0), (0, 0, 300, 100))
    image.info["transparency"] = (0, 0, 0)
    wanted = upright_rgb(image.copy(), 1).resize((90, 60), Image.Resampling.BICUBIC)

    assert np.array_equal(resize_in_bands(image, 1, (60, 90)), np.asarray(wanted))


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=200))
@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "L", "LA"])
def test_every_colour_survives_the_way_through_the_modes_that_hold_it(
    mode: str, colours: list[tuple[int, int, int]]
) -> None:
    image = Image.new("RGB", (len(colours), 1))
    image.putdata([colour if mode in ("RGBA", "CMYK") else (colour[0],) * 3 for colour in colours])

    assert list(image.convert(mode).convert("RGB").get_flattened_data()) == list(image.get_flattened_data())
