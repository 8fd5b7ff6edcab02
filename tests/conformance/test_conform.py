"""`qwenvl_kit.conform` of local engines: the frame, its record, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import qwenvl_kit
from qwenvl_kit import ConfigError
from qwenvl_kit.conformance.cases import Round
from qwenvl_kit.conformance.engines import ConfiguredEngine, Reference
from qwenvl_kit.conformance.run import engine_config
from qwenvl_kit.demo import MODEL_DIR
from qwenvl_kit.demo.exported import REPETITION_PENALTY


def test_both_exported_layouts_answer_like_the_embedded_model(
    reference: Reference, rounds: dict[str, Round], exported: tuple[Path, ...]
) -> None:
    right = [one.text for one in reference.ask(rounds["alike"])]

    for folder in exported:
        engine = ConfiguredEngine(engine_config({"model_name": str(folder), "dtype": "float32"}))
        assert [one.text for one in engine.ask(rounds["alike"])] == right
        assert engine.default_penalty == REPETITION_PENALTY


def test_two_precisions_of_a_checkpoint_are_compared_image_by_image() -> None:
    images = [np.full((56, 84, 3), level, np.uint8) for level in (30, 220)]

    frame = qwenvl_kit.conform(
        images,
        against={"dtype": "bfloat16"},
        model_name=str(MODEL_DIR),
        dtype="float32",
        max_caption_length=8,
        prompt="Describe this image.",
        progress=False,
    )

    assert frame.columns.tolist() == [
        *("text", "text_against", "same_text", "common_tokens", "kl", "logprob_difference", "error")
    ]
    assert frame["kl"].between(0, 0.5).all()
    assert 0 <= frame.attrs["agreement"] <= 1
    assert math.isclose(frame.attrs["kl"], frame["kl"].mean())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.5}, "conform sets temperature itself"),
        ({"batch_size": 2, "store": "a.db"}, "conform sets batch_size, store itself"),
        ({"backend": "onnx"}, "needs the model_name that backend='onnx' has"),
    ],
)
def test_options_that_conform_sets_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        qwenvl_kit.conform(**options)  # type: ignore[arg-type]


def test_images_without_another_engine_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"Pass images only with against"):
        qwenvl_kit.conform(["a.png"])


def test_comparing_an_engine_with_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="changes no option"):
        qwenvl_kit.conform(against={"dtype": "float32"}, dtype="float32", model_name="demo")
