"""A store that an earlier version wrote still answers: its keys are made of the same parts in the same order.

``tests/data/answers.sqlite`` was written by `write` below, run as a script at version 0.1. Write it anew only where
a key must change, and say so in the changelog: every user's store is asked again then. The rows of the embedded model
are those of its present weights, added by `add`.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import qwenvl_kit  # noqa: F401  # registers Series.vl

STORE = Path(__file__).parent / "data" / "answers.sqlite"
ECHO: dict[str, Any] = {"backend": "echo"}
DEMO: dict[str, Any] = {"model_name": "demo", "dtype": "float32", "use_flash_attention_2": False}
CALLS: dict[str, dict[str, Any]] = {
    "caption": {**ECHO},
    "a prompt of its own": {**ECHO, "prompt": "What is this?", "max_caption_length": 7},
    "sizes": {**ECHO, "min_pixels": 784, "max_pixels": 100_000, "resized_height": 56},
    "draft": {**ECHO, "decode": "draft"},
    "seeded samples": {**ECHO, "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3},
    "penalty and beams": {**ECHO, "repetition_penalty": 1.2, "num_beams": 2},
    "the embedded model": {**DEMO, "max_caption_length": 6},
    "the embedded model, sampled": {**DEMO, "max_caption_length": 6, "do_sample": True, "temperature": 0.5, "seed": 1},
}


def images() -> pd.Series:
    """Three arrays; pixels, not a file's bytes, so that no encoder's version matters."""
    return pd.Series([np.full((28, 56, 3), level, np.uint8) for level in (0, 128, 255)], dtype=object)


def answers(options: dict[str, Any], store: Path) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of options that the echo backend ignores, and of names that were renamed
        run: pd.DataFrame = images().vl.run(store=str(store), progress=False, **options)
    return run


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.model) if "embedded" in name else name for name in CALLS]
)
def test_a_store_of_an_earlier_version_answers_every_row(name: str, tmp_path: Path) -> None:
    store = tmp_path / "answers.sqlite"
    shutil.copy(STORE, store)

    run = answers(CALLS[name], store)

    assert run["cached"].all()
    assert (run["status"] == "ok").all()
    assert run["text"].str.len().gt(0).all()


def write(store: Path) -> None:
    """Write the store anew."""
    store.unlink(missing_ok=True)
    for options in CALLS.values():
        answers(options, store)


def add(store: Path) -> None:
    """Add the rows of the embedded model, after it was trained further."""
    for name, options in CALLS.items():
        if "embedded" in name:
            answers(options, store)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
