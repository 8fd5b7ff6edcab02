"""Answers by a schema are what the constraint allows, and hold the truth of the scene."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.demo.scenes import LARGE_WORLD, Scene, Thing, describe, sample_scenes, sample_schema, scene_schema
from qwenvl_kit.tasks.schema import read_schema

STAR = Thing(shape="star", colour="red", size="large", cell=0)
RING = Thing(shape="ring", colour="blue", size="small", cell=8)
SCENE = Scene(background="white", things=(STAR, RING))
SCENES = sample_scenes(24, seed=4, world=LARGE_WORLD)


def test_the_whole_scene_is_described() -> None:
    assert describe(SCENE, scene_schema("shape", "colour", "place")).answer == (
        '{"count": 2, "background": "white", "objects": [{"shape": "star", "colour": "red", "place": "top left"}, '
        '{"shape": "ring", "colour": "blue", "place": "bottom right"}]}'
    )


def test_the_prompt_is_what_extract_asks() -> None:
    schema = scene_schema()
    assert describe(SCENE, schema).prompt == read_schema(schema).prompt()
    assert "shape (text), colour (text), size (text), place (text)" in describe(SCENE, schema).prompt


@given(seed=st.integers(0, 10**6))
def test_answers_have_the_order_of_the_schema_and_one_space_after_signs(seed: int) -> None:
    scene, rng = SCENES[seed % len(SCENES)], np.random.default_rng(seed)
    schema = sample_schema(scene, rng, world=LARGE_WORLD)
    listing = describe(scene, schema)
    answer = json.loads(listing.answer)
    assert list(answer) == list(schema["properties"])
    assert json.dumps(answer) == listing.answer
    assert len(listing.parts) == len(listing.about)
    for thing in answer.get("objects", []):
        assert list(thing) == list(schema["properties"]["objects"]["items"]["properties"])


@pytest.mark.parametrize("scene", SCENES[:8])
def test_the_constraint_allows_every_answer(scene: Scene) -> None:
    llguidance = pytest.importorskip("llguidance")
    from llguidance import LLMatcher

    from qwenvl_kit.inference.constraints import _grammar
    from qwenvl_kit.types import Constraint

    tokens = llguidance.LLTokenizer("byte")
    for seed in range(5):
        schema = sample_schema(scene, np.random.default_rng(seed), world=LARGE_WORLD)
        matcher = LLMatcher(tokens, _grammar(Constraint("json", read_schema(schema).source)))
        assert matcher.consume_tokens(list(describe(scene, schema).answer.encode()))
        assert matcher.is_accepting()
