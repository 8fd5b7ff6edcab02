"""Fixtures of tests on a real GPU; all are skipped without CUDA. QWENVL_KIT_GPU=cpu tries the tests on a CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu.measure import DEVICE
from gpu.shapes import make_checkpoint
from PIL import Image

import qwenvl_kit

_IN_MEMORY = Path("/dev/shm")
on_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="measures a GPU")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _exact_float32() -> Iterator[None]:
    """Turn TF32 off, in which torch runs the model card's own Conv3d by default."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(autouse=True)
def _cold() -> Iterator[None]:
    yield
    qwenvl_kit.unload()


@pytest.fixture(scope="session")
def shelf() -> Iterator[Path]:
    """Folder of the checkpoints, in memory where the system has such a place."""
    with tempfile.TemporaryDirectory(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def tiny(shelf: Path) -> Path:
    return make_checkpoint(shelf / "tiny", "tiny", device=DEVICE, max_pixels=200_000)


@pytest.fixture(scope="session")
def wide(shelf: Path) -> Path:
    """Layers as wide as the 7B's, four of them."""
    shape = "7b-thin" if DEVICE == "cuda" else "tiny"
    return make_checkpoint(shelf / "wide", shape, device=DEVICE, max_pixels=1_200_000)


def draw_images(n: int, sides: tuple[int, ...] = (84, 140, 224, 308, 420), seed: int = 0) -> list[Image.Image]:
    """Return images of random blocks of 7 × 7 pixels, with random sides."""
    rng = np.random.default_rng(seed)
    blocks = [rng.integers(0, 256, (*rng.choice(sides, 2) // 7, 3), dtype=np.uint8) for _ in range(n)]
    return [Image.fromarray(one.repeat(7, 0).repeat(7, 1)) for one in blocks]


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    return draw_images(12)
