"""Models on one thread, a random checkpoint in the published layout, and the embedded model as an export."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.model_fixtures import one_thread, pictures, published

from qwenvl_kit.export import to_onnx

__all__ = ["one_thread", "pictures", "published"]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, exported in float32."""
    return to_onnx("demo", tmp_path_factory.mktemp("exports") / "demo", verify_rows=0).path
