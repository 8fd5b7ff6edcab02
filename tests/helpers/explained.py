"""Explanations without a model."""

from __future__ import annotations

import re

import numpy as np

from qwenvl_kit.attribution import AnswerMaps, Curves, WordMap
from qwenvl_kit.explain import Explanation
from qwenvl_kit.explain.pictures import Pictures
from qwenvl_kit.options import FetchOptions

GREY = np.full((56, 84, 3), 127, np.uint8)


def explanation(answer: str = "A <red> star.", *, layers: int = 1, n_pictures: int = 1) -> Explanation:
    """Return an explanation whose word number w comes from cell w of the first picture."""
    grids = ((2, 3),) * n_pictures
    words = []
    for at, found in enumerate(re.finditer(r"\w+", answer)):
        weights = np.zeros((layers, 6 * n_pictures), np.float32)
        weights[:, at] = at + 1
        shares = np.array([0, 0.5, 1.0])
        curves = Curves(
            shares, np.array([1, 0, 0.0]), np.array([0, 1, 1.0]), np.full((2, 3), 0.5), np.full((2, 3), 0.5)
        )
        words.append(WordMap(found[0], *found.span(), -0.5, weights, curves))
    maps = AnswerMaps(tuple(words), grids, ((56, 84),) * n_pictures, tuple(range(layers)))
    cell: object = [GREY] * n_pictures if n_pictures > 1 else GREY
    return Explanation("first", answer, "attention", maps, Pictures(cell, FetchOptions()))
