"""What a hundred labels of one image cost, against one label.

``python tests/benchmarks/labels.py`` prints the seconds of CPU and the ratio for the embedded model and for the model
of the other benchmarks, on torch and ONNX Runtime: medians of alternating turns, each with an image that is new.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from contenders import make_model

import qwenvl_kit
from qwenvl_kit.demo import draw, model_dir, sample_scenes
from qwenvl_kit.export import to_onnx

N_TURNS = 9
OPTIONS: dict[str, Any] = {"dtype": "float32", "use_flash_attention_2": False, "progress": False}
COLOURS, SHAPES = ["red", "green", "blue", "black", "white"], "abcdefghijklmnopqrst"
WORDS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def main() -> None:
    """Print one line per model and backend."""
    with tempfile.TemporaryDirectory() as place:
        for name, folder in (("embedded", model_dir()), ("94 M", make_model(Path(place) / "94m"))):
            exported = to_onnx(folder, Path(place) / f"{folder.name}-onnx", verify_rows=0).path
            for backend, model in (("torch", folder), ("onnx", exported)):
                few, many = measure(backend, str(model))
                print(f"{name:9} {backend:6} 2 labels {few:.3f} s, 100 labels {many:.3f} s: {many / few:.2f}")
                qwenvl_kit.unload()


def measure(backend: str, model: str) -> tuple[float, float]:
    """Return the median seconds of CPU of two labels, the fewest, and of a hundred."""
    images = iter([draw(scene, long_side=448) for scene in sample_scenes(2 * N_TURNS + 2, seed=4)])
    seconds: dict[int, list[float]] = {2: [], 100: []}
    for turn in range(N_TURNS + 1):
        for n_labels, taken in seconds.items():
            cells = pd.Series([np.asarray(next(images))])
            started = time.process_time()
            cells.vl.classify(WORDS[:n_labels], prompt="What is it?", backend=backend, model_name=model, **OPTIONS)
            if turn:  # the first one loads
                taken.append(time.process_time() - started)
    return statistics.median(seconds[2]), statistics.median(seconds[100])


if __name__ == "__main__":
    main()
