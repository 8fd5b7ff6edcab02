"""Boxes and points of drawn objects are where the objects are drawn, in the JSON of the published models."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.demo.scenes import (
    LANGUAGES,
    LARGE_WORLD,
    Language,
    Locate,
    Named,
    Scene,
    Thing,
    draw,
    image_size,
    locate,
    resized_boxes,
    sample_names,
    sample_scenes,
)

STAR = Thing(shape="star", colour="red", size="large", cell=0, extent=0.8)
RING = Thing(shape="ring", colour="blue", size="small", cell=8, extent=0.5)
SCENE = Scene(background="white", things=(STAR, RING))
SCENES = sample_scenes(24, seed=4, world=LARGE_WORLD)


def test_all_objects_are_listed_in_raster_order_in_a_fence() -> None:
    assert locate(SCENE, "detect", "en", height=84, width=168).answer == (
        "```json\n[\n"
        '\t{"bbox_2d": [6, 3, 50, 25], "label": "red star"},\n'
        '\t{"bbox_2d": [126, 63, 154, 77], "label": "blue ring"}\n'
        "]\n```"
    )


def test_points_are_the_centres_of_the_boxes() -> None:
    answer = locate(SCENE, "point", "zh", height=112, width=112, is_fenced=False).answer
    assert json.loads(answer) == [
        {"point_2d": [19, 19], "label": "红色五角星"},
        {"point_2d": [93, 93], "label": "蓝色圆环"},
    ]


@pytest.mark.parametrize(
    ("what", "language", "prompt"),
    [
        ("detect", "en", "Detect every red star and ring in the image and output the coordinates in JSON format."),
        ("detect", "zh", "检测图中所有的红色五角星、圆环，以JSON格式输出坐标。"),
        ("point", "en", "Point to every red star and ring in the image and output the coordinates in JSON format."),
        ("point", "zh", "指出图中所有的红色五角星、圆环，以JSON格式输出坐标。"),
    ],
)
def test_prompts_name_the_objects(what: Locate, language: Language, prompt: str) -> None:
    names = (Named(colour="red", shape="star"), Named(shape="ring"))
    listing = locate(SCENE, what, language, height=112, width=112, names=names)
    assert listing.prompt == prompt
    assert listing.about == ((0,), (1,), ())


@pytest.mark.parametrize(("is_fenced", "answer"), [(True, "```json\n[]\n```"), (False, "[]")])
def test_an_absent_object_gives_an_empty_array(is_fenced: bool, answer: str) -> None:
    names = (Named(colour="green"),)
    assert locate(SCENE, "detect", "en", height=84, width=84, names=names, is_fenced=is_fenced).answer == answer


@pytest.mark.parametrize("language", LANGUAGES)
def test_without_names_the_prompt_asks_for_objects(language: Language) -> None:
    prompt = locate(SCENE, "detect", language, height=84, width=84).prompt
    assert {"zh": "所有的物体，", "en": "every object in"}[language] in prompt


@given(seed=st.integers(0, 10**6), rows=st.integers(3, 6), columns=st.integers(3, 6), n=st.integers(0, 3))
def test_every_answer_parses_and_stays_inside_the_image(seed: int, rows: int, columns: int, n: int) -> None:
    scene, rng = SCENES[seed % len(SCENES)], np.random.default_rng(seed)
    height, width = 28 * rows, 28 * columns
    names = sample_names(scene, rng, n=n, world=LARGE_WORLD)
    for language in LANGUAGES:
        fenced, bare = (
            locate(scene, "detect", language, height=height, width=width, names=names, is_fenced=is_fenced).answer
            for is_fenced in (True, False)
        )
        items = json.loads(bare)
        assert json.loads(fenced.removeprefix("```json\n").removesuffix("\n```")) == items
        for item in items:
            left, top, right, bottom = item["bbox_2d"]
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            assert not names or item["label"] in {name.words(language) for name in names}


@given(seed=st.integers(0, 10**6), n=st.integers(1, 3))
def test_no_object_has_two_of_the_names_of_a_prompt(seed: int, n: int) -> None:
    scene = SCENES[seed % len(SCENES)]
    names = sample_names(scene, np.random.default_rng(seed), n=n, world=LARGE_WORLD)
    assert 1 <= len(names) <= n
    assert all(sum(name.fits(thing) for name in names) <= 1 for thing in scene.things)


def test_one_name_in_four_is_absent() -> None:
    rng = np.random.default_rng(0)
    absent = sum(
        not any(name.fits(thing) for thing in scene.things)
        for scene in SCENES * 20
        for name in sample_names(scene, rng, world=LARGE_WORLD)
    )
    assert 0.15 < absent / (20 * len(SCENES)) < 0.35


def test_boxes_hold_the_pixels_of_their_object() -> None:
    for scene in SCENES:
        height, width = image_size(scene)
        pixels = draw(scene).astype(int)
        corners = pixels[0, 0]  # no object covers the corner of the image
        seen = np.abs(pixels - corners).max(axis=2) > 8
        covered = np.zeros_like(seen)
        for left, top, right, bottom in resized_boxes(scene, height=height, width=width):
            covered[int(top) : int(bottom) + 2, int(left) : int(right) + 2] = True
            assert seen[int(top) : int(bottom) + 2, int(left) : int(right) + 2].any()
        assert not (seen & ~covered).any()
