"""Captions and questions: fixed wording, decidable answers, balanced yes and no."""

from __future__ import annotations

import numpy as np
import pytest

from qwenvl_kit.demo.scenes import (
    CAPTION_PROMPTS,
    KINDS,
    LANGUAGES,
    LARGE_WORLD,
    Asker,
    Language,
    Scene,
    Thing,
    caption,
    questions,
    sample_scenes,
)

SCENE = Scene(
    background="beige",
    things=(
        Thing(shape="star", colour="orange", size="large", cell=0),
        Thing(shape="circle", colour="blue", size="small", cell=4),
        Thing(shape="triangle", colour="blue", size="large", cell=7),
    ),
)
YES, NO = {"有。", "Yes."}, {"没有。", "No."}


def test_the_default_prompts_come_first() -> None:
    assert CAPTION_PROMPTS["zh"][0] == "请给出这张图片的详细描述。"
    assert CAPTION_PROMPTS["en"][0] == "Describe this image in detail."


def test_captions_follow_their_templates() -> None:
    assert caption(SCENE, "zh") == (
        "米色背景上有三个物体。左上角：一个大的橙色五角星。正中间：一个小的蓝色圆形。正下方：一个大的蓝色三角形。"
    )
    assert caption(SCENE, "en") == (
        "Three objects on a beige background. Top left: a large orange star. Center: a small blue circle."
        " Bottom center: a large blue triangle."
    )


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_two_scenes_of_a_sample_share_a_caption_unless_they_show_the_same(language: Language) -> None:
    seen: dict[str, tuple[object, ...]] = {}
    for scene in sample_scenes(300, seed=2, world=LARGE_WORLD):
        shown = (scene.background, *((thing.kind, thing.size, thing.cell) for thing in scene.things))
        assert seen.setdefault(caption(scene, language), shown) == shown


def test_questions_are_asked_in_the_default_phrasing() -> None:
    asked = {question.kind: question for question in questions(SCENE, np.random.default_rng(0), "en")}
    assert list(asked) == [kind for kind in KINDS if kind != "number"], "no sign, no number"
    assert (asked["count"].prompt, asked["count"].answer) == ("How many objects are there?", "Three.")
    assert (asked["shape"].prompt, asked["shape"].answer) == ("What shape is the orange object?", "Star.")
    assert asked["background"].answer == "Beige."


@pytest.mark.parametrize("language", LANGUAGES)
def test_half_of_all_is_there_questions_are_true(language: Language) -> None:
    rng = np.random.default_rng(5)
    answers = [
        question.answer
        for scene in sample_scenes(600, seed=5, world=LARGE_WORLD)
        for question in questions(scene, rng, language)
        if question.kind == "is_there"
    ]
    assert set(answers) <= YES | NO
    assert 0.45 < np.mean([answer in YES for answer in answers]) < 0.55


def test_is_there_tells_the_truth() -> None:
    rng = np.random.default_rng(6)
    for scene in sample_scenes(200, seed=6, world=LARGE_WORLD):
        kinds = {" ".join(thing.kind) for thing in scene.things}
        for truth in (True, False):
            question = Asker(scene, rng, "en", world=LARGE_WORLD, vary=False).is_there(truth=truth)
            asked = question.prompt.removesuffix("?").split(" ", 3)[3]
            assert (asked in kinds) == truth
            assert question.answer == ("Yes." if truth else "No.")


def test_a_hard_no_shows_the_shape_in_another_colour_and_the_colour_on_another_shape() -> None:
    rng = np.random.default_rng(7)
    n_hard = 0
    for scene in sample_scenes(300, seed=7, world=LARGE_WORLD):
        question = Asker(scene, rng, "en", world=LARGE_WORLD, vary=False).is_there(truth=False)
        colour, shape = question.prompt.removesuffix("?").split(" ")[-2:]
        both = colour in {thing.colour for thing in scene.things} and shape in {thing.shape for thing in scene.things}
        assert question.hard == both
        n_hard += question.hard
    assert n_hard > 150


def test_questions_without_a_single_answer_are_not_asked() -> None:
    stars = tuple(Thing(shape="star", colour="red", size="small", cell=cell) for cell in (1, 5))
    twins = Scene(background="white", things=stars)
    kinds = {question.kind for question in questions(twins, np.random.default_rng(0), "zh")}
    assert kinds == {"count", "background", "what", "is_there"}


def test_an_empty_place_holds_nothing() -> None:
    question = Asker(SCENE, np.random.default_rng(0), "zh", vary=False).what(empty=True)
    assert question.answer == "没有物体。"
