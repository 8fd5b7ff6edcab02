"""Draw scenes from a seed, with true captions and questions. Needs numpy and Pillow only.

>>> scene = sample_scenes(1, seed=3)[0]
>>> draw(scene, long_side=112).shape[2]
3
>>> caption(scene, "en").startswith("One object")
True
"""

from __future__ import annotations

import warnings

from ._drawing import RGB, Box, boxes, draw, image_size, sign_boxes
from ._grounding import Locate, Named, locate, resized_boxes, sample_names
from ._language import CAPTION_PROMPTS, LANGUAGES, Language, caption, caption_parts, word, words
from ._questions import KINDS, SIGN, Asker, Listing, Question, questions
from ._schemas import describe, sample_schema, scene_schema
from ._signs import Sign
from ._world import (
    CELLS,
    LARGE_WORLD,
    SMALL_WORLD,
    WORLDS,
    Scene,
    Split,
    Thing,
    World,
    hang_signs,
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
    "SIGN",
    "SMALL_WORLD",
    "WORLDS",
    "Asker",
    "Box",
    "Language",
    "Listing",
    "Locate",
    "Named",
    "Question",
    "Scene",
    "Sign",
    "Split",
    "Thing",
    "World",
    "boxes",
    "caption",
    "caption_parts",
    "describe",
    "draw",
    "hang_signs",
    "image_size",
    "locate",
    "questions",
    "resized_boxes",
    "sample_names",
    "sample_scene",
    "sample_scenes",
    "sample_schema",
    "scene_schema",
    "sign_boxes",
    "split_of",
    "word",
    "words",
]


def __getattr__(name: str) -> object:
    if name == "picture_size":
        warnings.warn(
            "picture_size is now image_size; the former name leaves in the release after next.", DeprecationWarning, 2
        )
        return image_size
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
