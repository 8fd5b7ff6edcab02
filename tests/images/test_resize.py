"""The size that the model sees: the family's own arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.resize import MAX_ASPECT, resize, smart_resize, target_size
from qwenvl_kit.records import Geometry

SIDES = st.integers(1, 6000)
FACTORS = st.sampled_from([(14, 2), (16, 2), (14, 1)])
LIMITS = st.tuples(st.integers(1, 200), st.integers(1, 4000))


def geometry(factors: tuple[int, int], limits: tuple[int, int]) -> Geometry:
    """Limits in visual tokens: a least one, and how many more at most."""
    patch, merge = factors
    area = (patch * merge) ** 2
    return Geometry(patch, merge, limits[0] * area, (limits[0] + limits[1]) * area)


@given(SIDES, SIDES, FACTORS, LIMITS)
def test_sizes_equal_those_of_qwen_vl_utils(
    height: int, width: int, factors: tuple[int, int], limits: tuple[int, int]
) -> None:
    from qwen_vl_utils.vision_process import smart_resize as reference

    given_geometry = geometry(factors, limits)
    arguments = (given_geometry.factor, given_geometry.min_pixels, given_geometry.max_pixels)
    if max(height, width) / min(height, width) > MAX_ASPECT:
        with pytest.raises(RowError, match="too long"):
            smart_resize(height, width, given_geometry)
        return
    expected = reference(height, width, *arguments)

    size = smart_resize(height, width, given_geometry)

    if 0 in expected:  # the reference gives up on needles; we keep within the limits
        assert min(size) == given_geometry.factor
        assert size[0] * size[1] <= given_geometry.max_pixels
    else:
        assert size == expected


@given(SIDES, SIDES, FACTORS, LIMITS)
def test_sizes_are_whole_tokens_and_turn_with_the_picture(
    height: int, width: int, factors: tuple[int, int], limits: tuple[int, int]
) -> None:
    given_geometry = geometry(factors, limits)
    if max(height, width) / min(height, width) > MAX_ASPECT:
        return
    size = smart_resize(height, width, given_geometry)

    assert all(side > 0 and side % given_geometry.factor == 0 for side in size)
    assert smart_resize(width, height, given_geometry) == size[::-1]


@given(SIDES, SIDES, st.integers(1, 3000))
def test_one_size_asked_lets_the_other_follow(height: int, width: int, asked: int) -> None:
    other = max(1, round(width * asked / height))
    if max(asked, other) / min(asked, other) > MAX_ASPECT:
        return
    given_geometry = Geometry()

    assert target_size((height, width), given_geometry, resized_height=asked) == smart_resize(
        asked, other, given_geometry
    )


def test_pixels_are_resized_as_qwen_vl_utils_does_it() -> None:
    from PIL import Image
    from qwen_vl_utils.vision_process import fetch_image

    pixels = np.random.default_rng(0).integers(0, 256, (123, 321, 3), dtype=np.uint8)
    theirs = np.asarray(fetch_image({"image": Image.fromarray(pixels)}))

    ours = resize(pixels, target_size(pixels.shape[:2], Geometry()))

    assert np.array_equal(ours, theirs)


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)

    assert resize(pixels, (56, 84)) is pixels
