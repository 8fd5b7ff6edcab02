"""Ask a model about drawn scenes through `df.vl.run`: a prompt for each image in, a text or None for each out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from qwenvl_kit import accessor  # noqa: F401  # registers df.vl
from qwenvl_kit.demo.scenes import CAPTION_PROMPTS, Language, Question, Scene, caption, draw

from .metrics import Judged

#: Fields of `Config` unless others are asked for.
DEFAULTS: Mapping[str, Any] = {
    "model_name": "demo",
    "dtype": "float32",
    "use_flash_attention_2": False,
    "batch_size": 32,
    "rows_in_flight": 128,
    "progress": False,
}


def draw_all(scenes: Iterable[Scene]) -> pd.DataFrame:
    """Return a frame with the drawn scenes in its column `image`."""
    return pd.DataFrame({"image": [draw(scene) for scene in scenes]}, dtype=object)


def answers(frame: pd.DataFrame, prompts: Sequence[str], options: Mapping[str, Any]) -> list[str | None]:
    """Return the texts for one prompt an image, None for failed rows."""
    given = frame.vl.run("image", prompts=list(prompts), **{**DEFAULTS, **options})["text"]
    return [text if isinstance(text, str) else None for text in given]


def judge_questions(
    asked: Sequence[tuple[int, Question]],
    scenes: Sequence[Scene],
    frame: pd.DataFrame,
    language: Language,
    options: Mapping[str, Any],
) -> list[Judged]:
    """Ask questions about scenes, and set each answer beside its truth.

    Parameters
    ----------
    asked
        Position of the scene, and the question.
    scenes, frame
        The scenes and their drawn images.
    language
        Of the questions.
    options
        Fields of `Config`.
    """
    images = frame.iloc[[row for row, _ in asked]].reset_index(drop=True)
    given = answers(images, [question.prompt for _, question in asked], options)
    return [
        Judged(
            language=language,
            kind=question.kind,
            n_things=len(scenes[row].things),
            expected=question.answer,
            given=text,
            hard=question.hard,
        )
        for (row, question), text in zip(asked, given, strict=True)
    ]


def judge_captions(
    scenes: Sequence[Scene],
    frame: pd.DataFrame,
    language: Language,
    options: Mapping[str, Any],
    *,
    kind: str = "caption",
) -> list[Judged]:
    """Ask for a caption of each scene in the default phrasing, and set it beside its truth."""
    given = answers(frame, [CAPTION_PROMPTS[language][0]] * len(frame), options)
    return [
        Judged(language=language, kind=kind, n_things=len(scene.things), expected=caption(scene, language), given=text)
        for scene, text in zip(scenes, given, strict=True)
    ]
