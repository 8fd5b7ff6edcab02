"""Evaluate a model on held-out scenes: ``python -m qwenvl_kit.demo.training.evaluate``.

The scenes go through `df.vl.run`, greedy, in float32. An answer counts if all of it is right.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qwenvl_kit.demo import WORLD
from qwenvl_kit.demo.scenes import (
    CAPTION_PROMPTS,
    LANGUAGES,
    WORLDS,
    Asker,
    Language,
    Question,
    Scene,
    World,
    caption,
    sample_scenes,
)

from .asking import DEFAULTS, draw_all, judge_captions, judge_questions
from .evaluate_json import judge_places, judge_schema
from .evaluate_signs import judge_signs
from .metrics import Judged, score, table
from .places import PlaceScore, place_table, score_places

HEIGHTS = (28, 56, 84, 112, 140, 168, 224)


def evaluate(scenes: list[Scene], *, seed: int = 0, world: World = WORLD, **options: object) -> list[Judged]:
    """Caption every scene in both languages, ask it one question of each kind, and judge the answers.

    Parameters
    ----------
    scenes
        Scenes to draw.
    seed
        Seed of the questions.
    world
        Shapes and colours of absent objects.
    **options
        Fields of `Config`, such as `backend` or `batch_size`.
    """
    frame = draw_all(scenes)
    judged: list[Judged] = []
    for language in LANGUAGES:
        rng = np.random.default_rng([seed, 1])
        asked = [(row, one) for row, scene in enumerate(scenes) for one in ask_all(scene, language, rng, world=world)]
        judged += judge_captions(scenes, frame, language, options)
        judged += judge_questions(asked, scenes, frame, language, options)
    return judged


def by_height(
    scenes: list[Scene], options: Mapping[str, object], *, heights: Sequence[int] = HEIGHTS, language: Language = "zh"
) -> pd.DataFrame:
    """Caption the same scenes at several heights, to measure the cost of resizing.

    Parameters
    ----------
    scenes
        Scenes to draw.
    options
        Fields of `Config`.
    heights
        Values of `resized_height` in pixels.
    language
        Language of the captions.

    Returns
    -------
    DataFrame
        Index `resized_height`; `visual_tokens`, the mean number per image; `right`, the share of captions that are
        right as a whole.
    """
    frame = draw_all(scenes)
    truths = [caption(scene, language) for scene in scenes]
    rows: list[dict[str, float]] = []
    for height in heights:
        asked = {**DEFAULTS, **options, "resized_height": height, "min_pixels": 28 * 28, "max_pixels": 10**6}
        given = frame.vl.run("image", prompt=CAPTION_PROMPTS[language][0], **asked)
        tokens = (given["height"] * given["width"] / 28**2).mean()
        right = sum(answer == truth for answer, truth in zip(given["text"], truths, strict=True))
        rows.append({"resized_height": height, "visual_tokens": float(tokens), "right": right / len(scenes)})
    return pd.DataFrame(rows).set_index("resized_height")


def ask_all(scene: Scene, language: Language, rng: np.random.Generator, *, world: World) -> list[Question]:
    """Ask one question of each kind, and "is there" twice, once with each answer."""
    asker = Asker(scene, rng, language, world=world, vary=False)
    asked = [
        *(asker.count(), asker.background(), asker.colour(), asker.shape(), asker.what(), asker.where()),
        *(asker.is_there(truth=True), asker.is_there(truth=False)),
    ]
    return [question for question in asked if question is not None]


def main(arguments: list[str] | None = None) -> None:
    """Evaluate from the command line."""
    asked = _parser().parse_args(arguments)
    world = WORLDS[asked.world] if asked.world else WORLD
    scenes = sample_scenes(asked.scenes, seed=asked.seed, world=world)
    options: dict[str, Any] = {"backend": asked.backend, "dtype": asked.dtype, "batch_size": asked.batch_size}
    if asked.model is not None:
        options["model_name"] = str(asked.model.resolve())
    started = time.perf_counter()
    judged = evaluate(scenes, seed=asked.seed, world=world, **options)
    judged += judge_signs(scenes, options, seed=asked.seed)
    if asked.json_answers:
        judged += judge_schema(scenes, options)
    print(table(score(judged)))
    print(f"\n{len(judged)} answers in {time.perf_counter() - started:.0f} s ({asked.backend}, {asked.dtype})")
    places: list[PlaceScore] = []
    if asked.json_answers:
        places = score_places(judge_places(scenes, options, seed=asked.seed, world=world))
        print(f"\nBoxes and points:\n{place_table(places)}")
    if asked.heights:
        print("\nWhole Chinese captions by resized_height, min_pixels=784 and max_pixels=1000000:")
        print(by_height(scenes, options).to_string(float_format="{:.3f}".format))
    if asked.json is not None:
        asked.json.write_text(_report(judged, places), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m qwenvl_kit.demo.training.evaluate", description=__doc__)
    parser.add_argument("--scenes", type=int, default=100, help="held-out scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=("torch", "onnx"), default="torch")
    parser.add_argument("--model", type=Path, help="checkpoint folder instead of the embedded model")
    parser.add_argument("--world", choices=sorted(WORLDS), help="instead of the world of the embedded model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--heights", action=argparse.BooleanOptionalAction, default=True, help="what resized_height costs, too"
    )
    parser.add_argument(
        "--json-answers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="JSON by a schema, boxes and points, too",
    )
    parser.add_argument("--json", type=Path, help="write the scores and every wrong answer here")
    return parser


def _report(judged: list[Judged], places: list[PlaceScore]) -> str:
    scores = [{"language": s.language, "group": s.group, "right": s.n_right, "of": s.n_total} for s in score(judged)]
    wrong = [vars(answer) for answer in judged if not answer.right]
    report = {"scores": scores, "places": [vars(one) for one in places], "wrong": wrong}
    return json.dumps(report, ensure_ascii=False, indent=1)


if __name__ == "__main__":
    main()
