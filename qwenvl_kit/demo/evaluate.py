"""A model's name enters, a table of counts leaves: ``python -m qwenvl_kit.demo.evaluate``.

Held-out scenes go through the public door, `df.vl.caption` and `df.vl.ask`, in float32 and greedy; an answer counts
when all of it is right.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd

import qwenvl_kit  # noqa: F401 - registers df.vl

from . import WORLD
from ._language import CAPTION_PROMPTS, LANGUAGES, Language, caption
from ._metrics import Judged, score, table
from ._questions import Asker, Question
from .scenes import WORLDS, Scene, World, draw, sample_scenes


def evaluate(scenes: list[Scene], *, seed: int = 0, world: World = WORLD, **options: object) -> list[Judged]:
    """Caption every scene in both languages, ask it one question of each kind, and judge the answers.

    Parameters
    ----------
    scenes
        What to draw.
    seed
        Chooses what is asked.
    world
        Where the shapes and colours of absent objects come from.
    **options
        Fields of `Config`, such as `backend` or `batch_size`.
    """
    asked: dict[str, object] = {
        "model_name": "demo",
        "dtype": "float32",
        "batch_size": 32,
        "progress": False,
        **options,
    }
    frame = pd.DataFrame({"image": [draw(scene) for scene in scenes]}, dtype=object)
    judged: list[Judged] = []
    for language in LANGUAGES:
        judged += _captions(scenes, frame, language, asked)
        judged += _questions(scenes, frame, language, asked, world=world, rng=np.random.default_rng([seed, 1]))
    return judged


def ask_all(scene: Scene, language: Language, rng: np.random.Generator, *, world: World) -> list[Question]:
    """Ask one question of each kind, and "is there" twice: once where it is true, once where it is not."""
    asker = Asker(scene, rng, language, world=world, vary=False)
    asked = [
        *(asker.count(), asker.background(), asker.colour(), asker.shape(), asker.what(), asker.where()),
        *(asker.is_there(truth=True), asker.is_there(truth=False)),
    ]
    return [question for question in asked if question is not None]


def main(arguments: list[str] | None = None) -> None:
    """Evaluate from the command line."""
    parser = argparse.ArgumentParser(prog="python -m qwenvl_kit.demo.evaluate", description=__doc__)
    parser.add_argument("--scenes", type=int, default=100, help="held-out scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=("torch", "onnx"), default="torch")
    parser.add_argument("--model", type=Path, help="checkpoint folder instead of the embedded model")
    parser.add_argument("--world", choices=sorted(WORLDS), help="instead of the world of the embedded model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--json", type=Path, help="write the scores and every wrong answer here")
    asked = parser.parse_args(arguments)
    world = WORLDS[asked.world] if asked.world else WORLD
    scenes = sample_scenes(asked.scenes, seed=asked.seed, world=world)
    options: dict[str, object] = {"backend": asked.backend, "dtype": asked.dtype, "batch_size": asked.batch_size}
    if asked.model is not None:
        options["model_name"] = str(asked.model.resolve())
    started = time.perf_counter()
    judged = evaluate(scenes, seed=asked.seed, world=world, **options)
    print(table(score(judged)))
    print(f"\n{len(judged)} answers in {time.perf_counter() - started:.0f} s ({asked.backend}, {asked.dtype})")
    if asked.json is not None:
        asked.json.write_text(_report(judged), encoding="utf-8")


def _captions(scenes: list[Scene], frame: pd.DataFrame, language: Language, options: dict[str, object]) -> list[Judged]:
    given = frame.vl.caption("image", prompt=CAPTION_PROMPTS[language][0], **options)
    return [
        Judged(
            language=language,
            kind="caption",
            n_things=len(scene.things),
            expected=caption(scene, language),
            given=_text(answer),
        )
        for scene, answer in zip(scenes, given, strict=True)
    ]


def _questions(
    scenes: list[Scene],
    frame: pd.DataFrame,
    language: Language,
    options: dict[str, object],
    *,
    world: World,
    rng: np.random.Generator,
) -> list[Judged]:
    asked = [
        (row, question) for row, scene in enumerate(scenes) for question in ask_all(scene, language, rng, world=world)
    ]
    rows = pd.DataFrame(
        {
            "image": [frame["image"].iloc[row] for row, _ in asked],
            "question": [question.prompt for _, question in asked],
        }
    )
    given = rows.vl.ask("image", "question", **options)
    return [
        Judged(
            language=language,
            kind=question.kind,
            n_things=len(scenes[row].things),
            expected=question.answer,
            given=_text(answer),
            hard=question.hard,
        )
        for (row, question), answer in zip(asked, given, strict=True)
    ]


def _text(answer: object) -> str | None:
    return answer if isinstance(answer, str) else None


def _report(judged: list[Judged]) -> str:
    scores = [{"language": s.language, "group": s.group, "right": s.n_right, "of": s.n_total} for s in score(judged)]
    wrong = [vars(answer) for answer in judged if not answer.right]
    return json.dumps({"scores": scores, "wrong": wrong}, ensure_ascii=False, indent=1)


if __name__ == "__main__":
    main()
