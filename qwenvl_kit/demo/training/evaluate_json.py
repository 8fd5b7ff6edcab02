"""Ask for scenes as JSON by a schema and for the places of their objects, and judge the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from qwenvl_kit.demo.scenes import (
    LANGUAGES,
    Language,
    Locate,
    Named,
    Scene,
    World,
    describe,
    locate,
    resized_boxes,
    sample_names,
    scene_schema,
)

from .asking import DEFAULTS, answers, draw_all
from .images import input_size
from .metrics import Judged
from .places import KEYS, Located, read_items

#: Properties of an object in the schema that is evaluated.
FIELDS = ("shape", "colour", "size", "place")

_WHAT: tuple[Locate, ...] = ("detect", "point")


def judge_schema(scenes: list[Scene], options: Mapping[str, Any]) -> list[Judged]:
    """Extract every scene by a schema; an answer counts if count, background and every property are right.

    Parameters
    ----------
    scenes
        Scenes to draw.
    options
        Fields of `Config`.
    """
    schema = scene_schema(*FIELDS)
    found = draw_all(scenes).vl.extract("image", schema, **{**DEFAULTS, **options})
    return [
        Judged(
            language="en",
            kind="schema",
            n_things=len(scene.things),
            expected=describe(scene, schema).answer,
            given=None if status != "ok" else _normal(text),
        )
        for scene, text, status in zip(scenes, found["raw"], found["status"], strict=True)
    ]


def judge_places(
    scenes: list[Scene], options: Mapping[str, Any], *, seed: int, world: World, constrain: bool = False
) -> list[Located]:
    """Ask for boxes and points of one name and of all objects, in both languages; one name in four fits no object.

    Parameters
    ----------
    scenes
        Scenes to draw.
    options
        Fields of `Config`.
    seed
        Seed of the names.
    world
        Shapes and colours of absent objects.
    constrain
        Hold the answer to a schema while it is generated.
    """
    rng = np.random.default_rng([seed, 2])
    frame = draw_all(scenes)
    judged: list[Located] = []
    for language in LANGUAGES:
        asked_for: dict[str, list[tuple[Named, ...]]] = {
            "one": [sample_names(scene, rng, world=world) for scene in scenes],
            "all": [() for _ in scenes],
        }
        for asked, names in asked_for.items():
            for what in _WHAT:
                asking = _Asking(scenes, frame, what, language, names)
                judged += asking.judge(asking.answers(options, constrain=constrain), asked)
    return judged


@dataclass(frozen=True)
class _Asking:
    """One prompt for each scene."""

    scenes: list[Scene]
    frame: pd.DataFrame
    what: Locate
    language: Language
    names: list[tuple[Named, ...]]

    def answers(self, options: Mapping[str, Any], *, constrain: bool) -> list[str | None]:
        """Return the texts that the model answers."""
        prompts = [
            locate(scene, self.what, self.language, height=28, width=28, names=names).prompt
            for scene, names in zip(self.scenes, self.names, strict=True)
        ]
        if not constrain:
            return answers(self.frame, prompts, options)
        found = self.frame.vl.extract("image", _array(self.what), prompts=prompts, **{**DEFAULTS, **options})["raw"]
        return [text if isinstance(text, str) else None for text in found]

    def judge(self, texts: list[str | None], asked: str) -> list[Located]:
        """Set each answer beside its truth."""
        return [
            Located(
                language=self.language,
                what=self.what,
                asked=asked,
                truth=self._truth(row),
                given=read_items(text, self.what),
            )
            for row, text in enumerate(texts)
        ]

    def _truth(self, row: int) -> tuple[tuple[str, tuple[float, float, float, float]], ...]:
        scene = self.scenes[row]
        height, width = input_size(self.frame["image"].iloc[row])
        listing = locate(scene, "detect", self.language, height=height, width=width, names=self.names[row])
        labels = [label for label, _ in read_items(listing.answer, "detect") or ()]
        placed = resized_boxes(scene, height=height, width=width)
        things = [things[0] for things in listing.about if things]
        return tuple((label, placed[thing]) for label, thing in zip(labels, things, strict=True))


def _normal(text: str) -> str | None:
    """Return JSON with one space after commas and colons."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False)
    except ValueError:
        return None


def _array(what: Locate) -> dict[str, Any]:
    key, n_numbers = KEYS[what]
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": n_numbers, "maxItems": n_numbers}
    item = {"type": "object", "properties": {key: numbers, "label": {"type": "string"}}}
    return {"type": "array", "items": item}
