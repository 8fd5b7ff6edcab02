"""The embedded model, a tiny Qwen2.5-VL trained on drawn scenes, and those scenes.

>>> from qwenvl_kit import demo
>>> scene = demo.sample_scenes(1)[0]
>>> pixels, truth = demo.draw(scene), demo.caption(scene, "en")

The commands `qwenvl_kit.demo.training.train` and `qwenvl_kit.demo.training.evaluate` train and evaluate the model.
"""

from __future__ import annotations

from pathlib import Path

from .scenes import LARGE_WORLD, SMALL_WORLD, Scene, Thing, World, caption, draw, questions, sample_scenes

__all__ = [
    "LARGE_WORLD",
    "MODEL_DIR",
    "SMALL_WORLD",
    "WORLD",
    "Scene",
    "Thing",
    "World",
    "caption",
    "draw",
    "model_dir",
    "questions",
    "sample_scenes",
]

#: The folder of the embedded model, a standard checkpoint folder.
MODEL_DIR = Path(__file__).parent / "model"

#: The world that the embedded model was trained on.
WORLD = LARGE_WORLD


def model_dir() -> Path:
    """Return the folder of the embedded model.

    Raises
    ------
    FileNotFoundError
        When the package was installed without the weights.
    """
    if not (MODEL_DIR / "model.safetensors").is_file():
        raise FileNotFoundError(f"The embedded model is missing in {MODEL_DIR}. Reinstall qwenvl_kit from its wheel.")
    return MODEL_DIR
