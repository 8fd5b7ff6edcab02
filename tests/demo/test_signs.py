"""A sign adds a number to a scene, and changes nothing else that is asked of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.demo.scenes import (
    CELLS,
    LANGUAGES,
    LARGE_WORLD,
    SIGN,
    Asker,
    Language,
    Scene,
    Sign,
    Thing,
    boxes,
    caption,
    draw,
    hang_signs,
    image_size,
    questions,
    sample_scenes,
    sign_boxes,
    split_of,
)

STAR = Thing(shape="star", colour="red", size="large", cell=0)
SCENES = sample_scenes(40, seed=3, world=LARGE_WORLD)


def with_number(number: int) -> Scene:
    return Scene(background="white", things=(STAR,), signs=(Sign(number=number, cell=8),))


def asker(scene: Scene, language: Language = "en", seed: int = 0, *, vary: bool = False) -> Asker:
    return Asker(scene, np.random.default_rng(seed), language, world=LARGE_WORLD, vary=vary)


@pytest.mark.parametrize("scene", SCENES, ids=range(len(SCENES)))
def test_captions_boxes_and_the_split_leave_signs_out(scene: Scene) -> None:
    signed = hang_signs(scene, np.random.default_rng(1))
    assert signed.things == scene.things
    assert split_of(signed) == split_of(scene)
    assert boxes(signed, height=84, width=84) == boxes(scene, height=84, width=84)
    for language in LANGUAGES:
        assert caption(signed, language) == caption(scene, language)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 5))
def test_signs_hang_in_different_cells_without_an_object(seed: int, n: int) -> None:
    signed = hang_signs(SCENES[3], np.random.default_rng(seed), n=n)
    taken = {thing.cell for thing in signed.things} | {sign.cell for sign in signed.signs}
    assert len(signed.signs) == n
    assert len(taken) == n + len(signed.things)
    assert taken <= set(range(len(CELLS)))


def test_a_sample_holds_every_number_about_as_often() -> None:
    rng = np.random.default_rng(0)
    numbers = [hang_signs(SCENES[0], rng).signs[0].number for _ in range(3000)]
    counts = np.bincount(numbers)
    assert len(counts) == 100
    assert counts.min() > 10


@pytest.mark.parametrize(("short", "least", "most"), [(0.0, 10, 99), (1.0, 0, 9)])
def test_the_share_of_numbers_with_one_digit_can_be_chosen(short: float, least: int, most: int) -> None:
    rng = np.random.default_rng(0)
    numbers = {hang_signs(SCENES[0], rng, short=short).signs[0].number for _ in range(200)}
    assert least <= min(numbers) <= max(numbers) <= most


def test_every_number_looks_different_even_in_the_smallest_image() -> None:
    assert len({draw(with_number(number), long_side=84).tobytes() for number in range(100)}) == 100


def test_numbers_differ_inside_the_plate_alone() -> None:
    height, width = image_size(with_number(0))
    (left, top, right, bottom) = sign_boxes(with_number(0), height=height, width=width)[0]
    outside = np.ones((height, width), dtype=bool)
    outside[int(top) : int(bottom) + 2, int(left) : int(right) + 2] = False
    plain = draw(Scene(background="white", things=(STAR,)))
    for number in (0, 17, 88):
        assert (draw(with_number(number))[outside] == plain[outside]).all()


def test_the_ink_is_dark_on_a_light_plate() -> None:
    scene = with_number(1)
    height, width = image_size(scene)
    left, top, right, bottom = (round(side) for side in sign_boxes(scene, height=height, width=width)[0])
    plate = draw(scene)[top:bottom, left:right]
    stem, beside = plate[len(plate) // 2, len(plate) // 2], plate[len(plate) // 2, len(plate) // 5]
    assert stem.max() < 60
    assert beside.min() > 220


@pytest.mark.parametrize(
    ("language", "prompt", "answer"),
    [("en", "What number is written on the sign?", "7."), ("zh", "牌子上写着什么数字？", "7。")],
)
def test_the_number_is_asked_for_and_answered_in_digits(language: Language, prompt: str, answer: str) -> None:
    question = asker(with_number(7), language).number()
    assert question is not None
    assert (question.kind, question.prompt, question.answer) == ("number", prompt, answer)
    assert question.about == (SIGN,)


def test_the_number_is_asked_only_where_a_single_sign_decides_it() -> None:
    rng = np.random.default_rng(0)
    assert asker(SCENES[0]).number() is None
    assert asker(hang_signs(SCENES[0], rng, n=2)).number() is None
    kinds = [question.kind for question in questions(hang_signs(SCENES[0], rng), rng, "zh")]
    assert kinds.count("number") == 1


def test_a_sign_changes_no_other_question() -> None:
    for language in LANGUAGES:
        plain, signed = (
            questions(Scene(background="white", things=(STAR,), signs=signs), np.random.default_rng(4), language)
            for signs in ((), with_number(42).signs)
        )
        kept = [question for question in signed if question.kind not in ("number", "what")]
        assert kept == [question for question in plain if question.kind != "what"]


def test_a_place_with_a_sign_is_never_asked_for_as_an_empty_one() -> None:
    for seed in range(60):
        question = asker(with_number(3), seed=seed).what(empty=True)
        assert question.prompt != "What is at the bottom right?"


@pytest.mark.parametrize("number", [-1, 100])
def test_a_number_of_three_digits_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=rf"number must be 0 to 99, not {number}\. Signs hold at most two digits\."):
        Sign(number=number, cell=0)
