"""Questions for boxes about drawn scenes, with their true boxes in pixels of the drawn image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from qwenvl_kit.demo import WORLD
from qwenvl_kit.demo.scenes import (
    LANGUAGES,
    Language,
    Named,
    Scene,
    Split,
    boxes,
    draw,
    sample_names,
    sample_scenes,
)
from qwenvl_kit.tasks.grounding_prompts import object_prompt

OPTIONS: dict[str, Any] = {
    "model_name": "demo",
    "dtype": "float32",
    "use_flash_attention_2": False,
    "batch_size": 32,
    "rows_in_flight": 128,
    "progress": False,
}


def ask(n_scenes: int, seed: int, split: Split = "heldout") -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return questions and true boxes.

    Each scene is asked in both languages for the objects of one name, which one name in four fits none of, and for all
    objects.

    Returns
    -------
    questions : DataFrame
        ``image`` (uint8 (H, W, 3)), ``prompt``, and ``named``, whether one name is asked for.
    truth : DataFrame
        ``row`` of its question, ``label``, ``x0``, ``y0``, ``x1``, ``y1``.
    """
    rng = np.random.default_rng([seed, 2])
    questions: list[tuple[Any, str, bool]] = []
    truth: list[tuple[Any, ...]] = []
    for scene in sample_scenes(n_scenes, seed=seed, world=WORLD, split=split):
        image = draw(scene)
        for language in LANGUAGES:
            for names in (sample_names(scene, rng, world=WORLD), ()):
                truth += [(len(questions), *one) for one in _true(scene, image, names, language)]
                labels = tuple(name.words(language) for name in names)
                questions.append((image, object_prompt("box", labels, language), bool(names)))
    columns = ["row", "label", "x0", "y0", "x1", "y1"]
    return pd.DataFrame(questions, columns=["image", "prompt", "named"]), pd.DataFrame(truth, columns=columns)


def _true(scene: Scene, image: Any, names: tuple[Named, ...], language: Language) -> list[tuple[Any, ...]]:
    """Return label and box of each object that is asked for."""
    height, width = image.shape[:2]
    found = []
    for thing, box in zip(scene.things, boxes(scene, height=height, width=width), strict=True):
        kinds = names or (Named(colour=thing.colour, shape=thing.shape),)
        found += [(name.words(language), *box) for name in kinds if name.fits(thing)]
    return found
