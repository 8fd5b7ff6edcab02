"""With the published vocabulary, and at the published size, the kit gives the model card's tokens in float32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import two_sides
from helpers.checkpoints import make_published
from helpers.true_vocabulary import N_ROWS, write_true_tokenizer

FOLDER = "QWENVL_KIT_TRUE_CHECKPOINT"  # names a checkpoint in the published layout
HELPERS = Path(two_sides.__file__).parent


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow model with the published vocabulary."""
    folder = tmp_path_factory.mktemp("true-vocabulary")
    return make_published(folder, vocab_size=N_ROWS, hidden=64, layers=3, write_tokenizer=write_true_tokenizer)


@pytest.mark.slow
def test_a_narrow_model_with_the_published_vocabulary_gives_the_cards_tokens(small: Path, tmp_path: Path) -> None:
    _compare(small, tmp_path)


@pytest.mark.slow
def test_a_model_of_the_published_size_gives_the_cards_tokens(tmp_path: Path) -> None:
    folder = os.environ.get(FOLDER)
    if folder is None:
        pytest.skip(f"{FOLDER} names no checkpoint: 17 GB of memory and some minutes are needed")

    _compare(Path(folder), tmp_path)


def _compare(folder: Path, out: Path) -> None:
    answers = {}
    for side in ("card", "kit"):  # in turn: only one model is in memory
        file = out / f"{side}.json"
        command = [sys.executable, str(HELPERS / "two_sides.py"), side, str(folder), str(file)]
        subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        answers[side] = json.loads(file.read_text(encoding="utf-8"))
    assert answers["kit"] == answers["card"]
    assert len(set(answers["card"])) > 4, "answers that hardly differ would prove little"
