"""What explanations cost beside the answers: seconds of CPU of each method over those of ``caption``.

``python tests/benchmarks/explain_cost.py`` captions pictures of the drawn world with the embedded model, and explains
the same captions. Medians of ``--turns`` turns, in turn about. ``--same-size`` makes all pictures 112 pixels square,
so that one grey image serves all corrections.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

import qwenvl_kit  # noqa: F401  # registers Series.vl
from qwenvl_kit.demo import WORLD, draw
from qwenvl_kit.demo.scenes import sample_scenes
from qwenvl_kit.executors.model_cache import model_cache

OPTIONS: dict[str, Any] = {
    "model_name": "demo",
    "dtype": "float32",
    "use_flash_attention_2": False,
    "max_caption_length": 96,
    "progress": False,
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--same-size", action="store_true")
    given = parser.parse_args()
    images = [draw(scene) for scene in sample_scenes(given.pictures, seed=91_000, world=WORLD)]
    if given.same_size:
        images = [np.asarray(Image.fromarray(image).resize((112, 112))) for image in images]
    asked: dict[str, Callable[[], object]] = {
        "caption": lambda: pd.Series(images).vl.caption(**OPTIONS),
        "attention, not corrected": lambda: pd.Series(images).vl.explain(correct=False, **OPTIONS),
        "attention": lambda: pd.Series(images).vl.explain(**OPTIONS),
        "gradient": lambda: pd.Series(images).vl.explain(method="gradient", **OPTIONS),
        "occlusion, grid=3": lambda: pd.Series(images).vl.explain(method="occlusion", grid=3, **OPTIONS),
        "occlusion, grid=8": lambda: pd.Series(images).vl.explain(method="occlusion", grid=8, **OPTIONS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for turn in range(given.turns + 1):
        for name, run in asked.items():
            # Images are encoded in every turn, as those of a new column are.
            clear_images()
            started = time.process_time()
            run()
            if turn:  # the first one loads
                seconds[name].append(time.process_time() - started)
    plain = statistics.median(seconds["caption"])
    for name, some in seconds.items():
        took = statistics.median(some)
        print(f"{name:26} {took / given.pictures * 1000:7.1f} ms a picture  {took / plain:5.2f}")


def clear_images() -> None:
    """Forget the visual tokens of the loaded model."""
    backend: Any = model_cache._backend
    if backend is not None:
        backend.encoder_cache.clear()


if __name__ == "__main__":
    main()
