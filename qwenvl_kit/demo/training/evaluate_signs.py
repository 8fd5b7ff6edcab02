"""Hang a sign into every scene, ask for its number, and judge the answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qwenvl_kit.demo.scenes import LANGUAGES, Asker, Scene, hang_signs

from .asking import draw_all, judge_captions, judge_questions
from .metrics import BESIDE_A_SIGN, Judged


def judge_signs(scenes: list[Scene], options: Mapping[str, Any], *, seed: int = 0) -> list[Judged]:
    """Ask for the number on the sign and for a caption, which leaves the sign out, in both languages.

    Parameters
    ----------
    scenes
        Scenes with an empty cell; a sign with a number from 0 to 99 is drawn into it.
    options
        Fields of `Config`.
    seed
        Seed of the numbers and their cells.
    """
    rng = np.random.default_rng([seed, 3])
    signed = [hang_signs(scene, rng) for scene in scenes]
    frame = draw_all(signed)
    judged: list[Judged] = []
    for language in LANGUAGES:
        numbers = [Asker(scene, rng, language, vary=False).number() for scene in signed]
        asked = [(row, question) for row, question in enumerate(numbers) if question is not None]
        judged += judge_questions(asked, signed, frame, language, options)
        judged += judge_captions(signed, frame, language, options, kind=BESIDE_A_SIGN)
    return judged
