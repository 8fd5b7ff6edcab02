"""What a machine may lack: a reason to skip a test, but in CI, where every test has to run, a failure."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest
from PIL import features


def lacking(what: str) -> NoReturn:
    """Skip the test, or fail it in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; nothing is skipped in CI")
    pytest.skip(what)


def need_format(form: str, feature: str) -> None:
    """Go on where Pillow was built with a library, as its wheels are."""
    if not features.check(feature):
        lacking(f"this Pillow writes no {form}")


def fake_cuda() -> pytest.MarkDecorator:
    """Skip with an older torch, which needs a driver to make fake tensors of random numbers on CUDA (seen with 2.8)."""
    import torch

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return pytest.mark.skipif(version < (2, 11), reason="this torch needs a driver for fake CUDA tensors")
