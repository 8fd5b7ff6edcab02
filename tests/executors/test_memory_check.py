"""A model that its device cannot hold is told before it is loaded, with figures and what to change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from qwenvl_kit import CostWarning, InsufficientMemory, unload
from qwenvl_kit.executors import memory_check

pytestmark = pytest.mark.model
DEMO: dict[str, Any] = {"model_name": "demo", "max_caption_length": 1, "progress": False}
MIB = 2**20


@pytest.fixture(autouse=True)
def _nothing_loaded() -> None:
    unload()


def machine(monkeypatch: pytest.MonkeyPatch, *, free: float, total: float) -> None:
    """Pretend a machine of so many MiB; the demo's weights take 9 in float32 and 5 in bfloat16."""
    monkeypatch.setattr(memory_check, "available_memory", lambda: int(free * MIB))
    monkeypatch.setattr(memory_check, "total_memory", lambda: int(total * MIB))


def cells() -> pd.Series:
    return pd.Series([np.zeros((84, 84, 3), np.uint8), None])


def test_weights_beyond_all_memory_are_an_error_before_they_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl_kit.torch_backend.backend import TorchSpec

    machine(monkeypatch, free=2, total=6)
    monkeypatch.setattr(TorchSpec, "load", lambda *_: pytest.fail("loaded"))

    with pytest.raises(InsufficientMemory, match=r"take 9 MiB in float32; cpu has 6 MiB in all.*bfloat16") as caught:
        cells().vl.run(dtype="float32", **DEMO)
    assert caught.value.results["status"].tolist() == ["error", "null_image"]


def test_weights_beyond_free_memory_are_a_warning_and_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, free=2, total=100)

    with pytest.warns(CostWarning, match="cpu has 2 MiB free"):
        found = cells().vl.run(dtype="float32", **DEMO)

    assert found["status"].tolist() == ["ok", "null_image"]
    assert any("cpu has 2 MiB free" in note for note in found.attrs["effective"]["notes"])


def test_weights_that_stay_in_mapped_files_are_a_warning_even_beyond_all_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch, free=1, total=2)

    with pytest.warns(CostWarning, match="take 5 MiB in bfloat16"):
        assert cells().vl.run(dtype="bfloat16", **DEMO)["status"].tolist() == ["ok", "null_image"]


def test_a_loaded_model_and_rows_without_images_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    cells().vl.run(dtype="float32", **DEMO)
    machine(monkeypatch, free=2, total=6)

    assert cells().vl.run(dtype="float32", **DEMO)["status"].tolist() == ["ok", "null_image"]
    assert pd.Series([None]).vl.run(dtype="bfloat16", **DEMO)["status"].tolist() == ["null_image"]
