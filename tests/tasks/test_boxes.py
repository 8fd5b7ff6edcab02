"""A box comes back to its place in the original image, whatever turned and resized it on the way."""

from __future__ import annotations

import random

import pytest
from helpers.mapped_boxes import TURNS, draw_case, error_of, exact_answer, least_side, load, seen_answer
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_kit import ConfigError
from qwenvl_kit.tasks.boxes import clip_box, clip_point, coordinate_system, from_input_pixels

SIZES = st.tuples(st.integers(1, 10_000), st.integers(1, 10_000))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_an_exactly_mapped_box_comes_back_within_the_rounding_of_one_input_pixel(seed: int) -> None:
    case = draw_case(random.Random(seed))
    if (image := load(case)) is None:
        return

    assert image.source_size == case.size
    error = error_of(case, image, exact_answer(case, image))

    assert error is None or error.in_input <= 0.5 + 1e-6
    assert error is not None or least_side(case, image) < 1


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_a_box_that_is_read_off_the_models_input_is_the_one_drawn_in_the_original(seed: int) -> None:
    case = draw_case(random.Random(seed))
    image = load(case)
    if image is None or least_side(case, image) < 4 or (answer := seen_answer(image)) is None:
        return

    error = error_of(case, image, answer)

    assert error is not None
    assert error.in_larger <= 1.0


@pytest.mark.parametrize("turn", TURNS)
def test_cases_have_every_turn(turn: int) -> None:
    assert turn in {draw_case(random.Random(seed)).turn for seed in range(200)}


@given(size=SIZES, shown=SIZES)
def test_the_corners_of_the_input_are_those_of_the_original(size: tuple[int, int], shown: tuple[int, int]) -> None:
    whole = from_input_pixels((0, 0, shown[1], shown[0]), shown, size)

    assert whole == (0, 0, size[1], size[0])
    assert clip_box(whole, size) == (whole, False)


@given(box=st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), size=SIZES, shown=SIZES)
def test_a_box_is_within_the_image_and_has_an_area_or_there_is_none(
    box: tuple[float, ...], size: tuple[int, int], shown: tuple[int, int]
) -> None:
    found = clip_box(from_input_pixels(box, shown, size), size)

    if found is not None:
        (x0, y0, x1, y1), is_changed = found
        assert 0 <= x0 < x1 <= size[1]
        assert 0 <= y0 < y1 <= size[0]
        assert is_changed or (x0, y0, x1, y1) == from_input_pixels(box, shown, size)


@given(point=st.tuples(NUMBERS, NUMBERS), size=SIZES)
def test_a_point_is_within_the_image_and_unchanged_or_there_is_none(
    point: tuple[float, float], size: tuple[int, int]
) -> None:
    is_inside = 0 <= point[0] <= size[1] and 0 <= point[1] <= size[0]

    assert clip_point(point, size) == ((point, False) if is_inside else None)


def test_coordinates_of_an_unknown_family_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'qwen3_vl' are not known\. Supported: qwen2_5_vl"):
        coordinate_system("qwen3_vl")
