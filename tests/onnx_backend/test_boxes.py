"""An export finds the boxes that torch finds, also in images that are hard; scores rank them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qwenvl_kit.boxes import box_metrics
from qwenvl_kit.demo import WORLD, draw, sample_scenes
from qwenvl_kit.demo.scenes import Named, boxes, sample_names
from qwenvl_kit.export import to_onnx

pytestmark = [pytest.mark.model, pytest.mark.slow]

SETTINGS: dict[str, Any] = {"dtype": "float32", "use_flash_attention_2": False, "batch_size": 16, "progress": False}
N_SCENES = 40
NOISE = 90  # gray levels
CORNERS = ["x0", "y0", "x1", "y1"]
Case = tuple[pd.DataFrame, pd.DataFrame]


def case(names: list[tuple[Named, ...]], *, noise: float) -> Case:
    """Return images with the names to find, if any, and their true boxes."""
    draws = np.random.default_rng(5)
    images, truth = [], []
    for row, (scene, asked) in enumerate(zip(sample_scenes(N_SCENES, seed=90, world=WORLD), names, strict=True)):
        pixels = draw(scene)
        images.append(np.clip(pixels + draws.normal(0, noise, pixels.shape), 0, 255).astype(np.uint8))
        for thing, box in zip(scene.things, boxes(scene, height=pixels.shape[0], width=pixels.shape[1]), strict=True):
            kinds = asked or (Named(colour=thing.colour, shape=thing.shape),)
            truth += [(row, name.words("en"), *box) for name in kinds if name.fits(thing)]
    wanted = [[name.words("en") for name in asked] or None for asked in names]
    frame = pd.DataFrame({"image": images, "names": pd.Series(wanted, dtype=object)})
    return frame, pd.DataFrame(truth, columns=["row", "label", *CORNERS])


def detect(given: Case, model: Path | str = "demo", **more: Any) -> pd.DataFrame:
    return given[0].vl.detect("image", "names", model_name=str(model), **SETTINGS, **more)


@pytest.fixture(scope="module")
def noisy() -> Case:
    """Noisy images, each asked for one name, which half of them do not have."""
    draws = np.random.default_rng(6)
    scenes = sample_scenes(N_SCENES, seed=90, world=WORLD)
    return case([sample_names(scene, draws, absent=0.5, world=WORLD) for scene in scenes], noise=NOISE)


@pytest.fixture(scope="module")
def clean() -> Case:
    """Images that are asked for all objects."""
    return case([()] * N_SCENES, noise=0)


@pytest.fixture(scope="module")
def found(noisy: Case) -> pd.DataFrame:
    return detect(noisy)


def test_a_float32_export_finds_the_same_boxes(exported: Path, noisy: Case, found: pd.DataFrame) -> None:
    ours = detect(noisy, exported, backend="onnx")

    assert ours[["row", "label"]].to_numpy().tolist() == found[["row", "label"]].to_numpy().tolist()
    pixel = found[["width", "height"]].max(axis=1) / 84  # of the model's input, whose sides are 84 pixels and more
    assert ((ours[CORNERS] - found[CORNERS]).abs().max(axis=1) <= 1.001 * pixel).all()
    assert ours["score"].to_numpy() == pytest.approx(found["score"].to_numpy(), abs=1e-3)


def test_an_int8_export_loses_less_than_a_point_of_f1(tmp_path: Path, clean: Case) -> None:
    rounded = to_onnx("demo", tmp_path / "int8", quantize="int8", verify_rows=0).path
    ours, theirs = (
        box_metrics(one, clean[1]).overall["f1"].loc[0.5]
        for one in (detect(clean, rounded, backend="onnx"), detect(clean))
    )

    assert theirs > 0.97
    assert ours >= theirs - 0.01


def test_scores_rank_boxes_better_than_a_constant(noisy: Case, found: pd.DataFrame) -> None:
    ours, constant = (
        box_metrics(one, noisy[1], match_labels=False).overall["ap"].loc[0.5]
        for one in (found, found.assign(score=1.0))
    )

    assert box_metrics(found, noisy[1]).overall["precision"].loc[0.5] < 0.97, "some boxes are wrong"
    assert ours > constant + 0.01
