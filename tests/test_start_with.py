"""An answer that begins with a given text has it, and nothing that cannot keep it pretends to."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from qwenvl_kit import Control
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.operator import QwenVLImageUnderstanding

ECHO = {"backend": "echo", "progress": False}
IMAGES = pd.Series([np.zeros((56, 56, 3), np.uint8)])


def test_the_answer_has_its_beginning_once_and_its_limit_counts_only_what_follows() -> None:
    heard: list[str] = []
    control = Control(on_token=lambda _, text: heard.append(text))

    run = IMAGES.vl.run(prompt="one two", start_with="A photo of ", max_caption_length=2, control=control, **ECHO)

    assert run["text"].tolist() == ["A photo of one two"]
    assert run["new_tokens"].tolist() == [2]
    assert "".join(heard) == "A photo of one two"
    assert run.attrs["asked"]["start_with"] == "A photo of "


def test_the_operator_begins_its_answers_too() -> None:
    understand = QwenVLImageUnderstanding(
        backend="echo", image_src_type="auto", start_with="A photo", max_caption_length=1
    )

    assert understand([IMAGES[0]], ["of"]) == ["A photo of"]


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_beginning_is_none(blank: str) -> None:
    assert IMAGES.vl.caption(start_with=blank, **ECHO).tolist() == IMAGES.vl.caption(**ECHO).tolist()


@pytest.mark.parametrize(
    "ask",
    [
        lambda: IMAGES.vl.extract({"count": int}, start_with="A", model_name="demo"),
        lambda: IMAGES.vl.ask("Which?", choices=["a", "b"], start_with="A", model_name="demo"),
        lambda: IMAGES.vl.classify(["a", "b"], start_with="A", model_name="demo"),
        lambda: IMAGES.vl.explain(start_with="A", model_name="demo"),
        lambda: IMAGES.vl.caption(start_with="A", backend="openai", base_url="http://127.0.0.1:9/v1", model_name="x"),
    ],
    ids=["extract", "choices", "labels", "explain", "server"],
)
def test_what_cannot_begin_so_is_refused_by_name(ask: object) -> None:
    with pytest.raises(ConfigError, match="start_with"):
        ask()  # type: ignore[operator]
