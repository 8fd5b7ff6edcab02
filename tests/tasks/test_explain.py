"""What an explanation asks for, and what it refuses before a model loads."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

import qwenvl_kit  # noqa: F401  # registers Series.vl
from qwenvl_kit.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "echo"}, "backend='echo' cannot explain answers: it has no model. Use backend='torch'."),
        ({"backend": "onnx"}, "an export has no graph that returns attention or hides visual tokens"),
        ({"backend": "openai", "base_url": "http://127.0.0.1:9"}, "servers return tokens, and neither attention"),
        ({"num_beams": 2}, r"Beam search does not support explanations \(num_beams=2\)"),
        ({"store": "answers.sqlite"}, "The store keeps answers without their maps"),
        ({"method": "guess"}, "method must be 'attention', 'occlusion' or 'gradient'; got 'guess'"),
        ({"method": "gradient", "layers": [1]}, "layers and heads are of method='attention'"),
        ({"grid": 1}, "grid must be a whole number from 2 to 32; got 1"),
        ({"layers": 3}, "layers must be a list of whole numbers or 'all'; got 3"),
        ({"heads": "all"}, "heads must be a list of whole numbers; got 'all'"),
        ({"heads": []}, "heads must be a list of whole numbers"),
    ],
)
def test_what_cannot_be_explained_is_refused_before_a_model_loads(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pd.Series([None]).vl.explain(progress=False, **options)


def test_the_cost_of_hidden_squares_is_said_before_they_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    pd.Series([None]).vl.explain(model_name="demo", dtype="float32", method="occlusion", grid=4, check=True)
    said = capsys.readouterr().out
    assert "read 26 times (5 × 5 hidden squares per image, and once whole)" in said
    assert "18 times for each word" in said
