"""The size that the model sees: the family's own arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.resize import MAX_ASPECT, resize, smart_resize, target_size
from qwenvl_kit.types import PatchGeometry

SIDES = st.integers(1, 6000)
FACTORS = st.sampled_from([(14, 2), (16, 2), (14, 1)])
LIMITS = st.tuples(st.integers(1, 200), st.integers(1, 4000))


def geometry(factors: tuple[int, int], limits: tuple[int, int]) -> PatchGeometry:
    """Limits in visual tokens: a least one, and how many more at most."""
    patch, merge = factors
    area = (patch * merge) ** 2
    return PatchGeometry(patch, merge, limits[0] * area, (limits[0] + limits[1]) * area)


@pytest.mark.slow
@given(SIDES, SIDES, FACTORS, LIMITS)
def test_sizes_equal_those_of_qwen_vl_utils(
    height: int, width: int, factors: tuple[int, int], limits: tuple[int, int]
) -> None:
    from qwen_vl_utils.vision_process import smart_resize as reference

    given_geometry = geometry(factors, limits)
    arguments = (given_geometry.factor, given_geometry.min_pixels, given_geometry.max_pixels)
    if max(height, width) / min(height, width) > MAX_ASPECT:
        with pytest.raises(RowError, match="Aspect ratio"):
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
def test_sizes_are_whole_tokens_and_turn_with_the_image(
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
    given_geometry = PatchGeometry()

    assert target_size((height, width), given_geometry, resized_height=asked) == smart_resize(
        asked, other, given_geometry
    )


@pytest.mark.parametrize(
    ("source", "asked", "size"),
    [
        ((480, 640), {}, (476, 644)),
        ((480, 640), {"resized_height": 280}, (280, 364)),
        ((480, 640), {"resized_width": 280}, (224, 280)),
        ((480, 640), {"resized_height": 280, "resized_width": 56}, (280, 56)),
        ((480, 640), {"resized_height": 56, "resized_width": 280}, (56, 280)),
        ((1, 3000), {"resized_height": 100, "resized_width": 100}, (112, 112)),
        ((1, 100), {"resized_width": 100}, (28, 112)),
    ],
    ids=str,
)
def test_height_and_width_keep_their_places(
    source: tuple[int, int], asked: dict[str, int], size: tuple[int, int]
) -> None:
    assert target_size(source, PatchGeometry(), **asked) == size


@pytest.mark.parametrize("sides", [(1, 200), (14, 2800), (30, 6000), (3, 590)], ids=str)
@pytest.mark.parametrize("n_tokens", [4, 50, 150, 16384])
def test_needles_are_one_token_wide_and_within_the_limits(sides: tuple[int, int], n_tokens: int) -> None:
    area = PatchGeometry().factor ** 2
    limits = PatchGeometry(min_pixels=4 * area, max_pixels=n_tokens * area)

    height, width = smart_resize(*sides, limits)

    assert height % 28 == width % 28 == 0
    assert 0 < height <= width
    assert 4 * area <= height * width <= n_tokens * area


@pytest.mark.parametrize(("sides", "ratio"), [((1, 201), 201), ((6030, 30), 201), ((10, 30_000), 3000)], ids=str)
def test_beyond_200_to_1_the_fault_names_size_ratio_and_ways_out(sides: tuple[int, int], ratio: int) -> None:
    with pytest.raises(
        RowError, match=rf"Aspect ratio {ratio}:1 of a {sides[1]}×{sides[0]} image .*Crop it.*resized_height"
    ) as caught:
        target_size(sides, PatchGeometry())
    assert caught.value.stage == "resize"


@pytest.mark.slow
def test_pixels_are_resized_as_qwen_vl_utils_does_it() -> None:
    from PIL import Image
    from qwen_vl_utils.vision_process import fetch_image

    pixels = np.random.default_rng(0).integers(0, 256, (123, 321, 3), dtype=np.uint8)
    theirs = np.asarray(fetch_image({"image": Image.fromarray(pixels)}))

    ours = resize(pixels, target_size(pixels.shape[:2], PatchGeometry()))

    assert np.array_equal(ours, theirs)


def test_an_image_of_the_right_size_is_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)

    assert resize(pixels, (56, 84)) is pixels
