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
