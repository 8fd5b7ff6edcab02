"""Fixtures of the folders whose tests run a model; their conftest files import them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from qwenvl_kit.demo import draw, sample_scenes


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models this small are slower on two threads, ten times so on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out like Qwen/Qwen2.5-VL-3B-Instruct, with random weights."""
    from helpers.checkpoints import make_published

    return make_published(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """24 drawn images of sides from 84 to 768 pixels and aspects from 1:2 to 2:1."""
    return [Image.fromarray(draw(scene)) for scene in sample_scenes(24, seed=1)]
