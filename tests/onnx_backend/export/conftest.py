"""Exports shared by several tests, which do not change them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl_kit.demo import draw, sample_scenes


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small are slower on two threads, ten times so on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, exported in float32."""
    from qwenvl_kit.export import to_onnx

    return to_onnx("demo", tmp_path_factory.mktemp("exports") / "demo", verify_rows=0).path


@pytest.fixture
def own_onnx(demo_onnx: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(demo_onnx, tmp_path / "own"))


@pytest.fixture(scope="session")
def unseen() -> list[Image.Image]:
    """24 drawn scenes of sizes from 40 to 400 pixels outside of the training data."""
    rng = np.random.default_rng(7)
    return [Image.fromarray(draw(scene, long_side=int(rng.integers(60, 400)))) for scene in sample_scenes(24, seed=77)]
