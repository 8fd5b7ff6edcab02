"""Answers that loop are told apart from lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwenvl_kit import Config, ConfigError
from qwenvl_kit.executors import execute
from qwenvl_kit.inference.repetition import repeated_phrase
from qwenvl_kit.types import Constraint, Prompt, Result


@given(
    st.lists(st.integers(0, 9), max_size=40),
    st.lists(st.integers(10, 19), min_size=1, max_size=20, unique=True),
    st.integers(1, 60),
)
def test_a_phrase_said_four_times_over_32_tokens_is_a_loop(start: list[int], phrase: list[int], times: int) -> None:
    found = repeated_phrase([*start, *phrase * times])

    assert found == (len(phrase) if times >= 4 and len(phrase) * times >= max(32, 4 * len(phrase)) else None)


def test_a_loop_that_ended_is_none() -> None:
    assert repeated_phrase([*[1, 2] * 40, 3, 4, 5]) is None


def run(published: Path, pictures: list[Image.Image], **options: Any) -> list[Result]:
    """Answer six rows, of which every second one can only loop, whatever the weights."""
    loop = Prompt("What?", constraint=Constraint("regex", "Q{300}"))  # the vocabulary has no longer token of Qs
    sentence = Prompt("What?", constraint=Constraint("choices", '["A blue star on a white background."]'))
    config = Config(
        model_name=str(published),
        max_caption_length=96,
        dtype="float32",
        use_flash_attention_2=False,
        progress=False,
        **options,
    )
    return execute(pictures[:6], [loop, sentence] * 3, config).results


def test_answers_that_loop_to_their_end_are_flagged_with_the_phrase(
    published: Path, pictures: list[Image.Image]
) -> None:
    results = run(published, pictures)

    for result in results[::2]:
        assert (result.finish_reason, result.text) == ("length", "Q" * 96)
        assert result.flag == "repeats 'Q' to its end"
    assert all((result.finish_reason, result.flag) == ("stop", None) for result in results[1::2])


def test_stopping_at_loops_cuts_those_answers_and_leaves_the_others(
    published: Path, pictures: list[Image.Image]
) -> None:
    results = run(published, pictures, stop_repetition=True, batch_size=5)

    for result in results[::2]:
        assert result.finish_reason == "repetition"
        assert result.new_tokens is not None
        assert 32 <= result.new_tokens < 96
        assert result.text == "Q" * result.new_tokens
        assert result.flag == "repeats 'Q' to its end"
    assert {result.text for result in results[1::2]} == {"A blue star on a white background."}


def test_beams_cannot_be_watched_for_loops() -> None:
    with pytest.raises(ConfigError, match="num_beams=1"):
        Config(num_beams=2, stop_repetition=True)
