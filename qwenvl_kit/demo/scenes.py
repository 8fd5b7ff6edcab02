"""A seed enters; drawn pictures, their truth and questions about them leave.

This is the public face of the drawn world. It needs numpy and Pillow only and knows nothing of models.

>>> scene = sample_scenes(1, seed=3)[0]
>>> draw(scene, long_side=112).shape[2]
3
>>> caption(scene, "en").startswith("One object")
True
"""

from __future__ import annotations

from ._drawing import RGB, Box, boxes, draw, picture_size
from ._language import CAPTION_PROMPTS, LANGUAGES, Language, caption
from ._questions import KINDS, Asker, Question, questions
from ._world import (
    CELLS,
    LARGE_WORLD,
    SMALL_WORLD,
    WORLDS,
    Scene,
    Split,
    Thing,
    World,
    sample_scene,
    sample_scenes,
    split_of,
)

__all__ = [
    "CAPTION_PROMPTS",
    "CELLS",
    "KINDS",
    "LANGUAGES",
    "LARGE_WORLD",
    "RGB",
    "SMALL_WORLD",
    "WORLDS",
    "Asker",
    "Box",
    "Language",
    "Question",
    "Scene",
    "Split",
    "Thing",
    "World",
    "boxes",
    "caption",
    "draw",
    "picture_size",
    "questions",
    "sample_scene",
    "sample_scenes",
    "split_of",
]
