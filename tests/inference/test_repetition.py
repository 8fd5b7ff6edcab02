"""Answers that loop are told apart from lists."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import qwenvl_kit
from qwenvl_kit.inference.repetition import repeated_phrase


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


@pytest.fixture
def looping(published: Path, pictures: list[Image.Image]) -> pd.DataFrame:
    return pd.Series(pictures).vl.run(
        model_name=str(published),
        max_caption_length=96,
        dtype="float32",
        use_flash_attention_2=False,
        progress=False,
        repetition_penalty=1.0,
    )


def test_answers_that_loop_to_their_end_are_flagged_with_the_phrase(looping: pd.DataFrame) -> None:
    flagged = looping[looping["flag"].notna()]

    assert 1 <= len(flagged) < 24, "random weights loop often, and not always"
    assert (flagged["finish_reason"] == "length").all()
    assert flagged["flag"].str.startswith("repeats '").all()


def test_stopping_at_loops_cuts_those_answers_and_leaves_the_others(
    looping: pd.DataFrame, published: Path, pictures: list[Image.Image]
) -> None:
    stopped = pd.Series(pictures).vl.run(
        model_name=str(published),
        max_caption_length=96,
        dtype="float32",
        use_flash_attention_2=False,
        progress=False,
        repetition_penalty=1.0,
        stop_repetition=True,
        batch_size=5,
    )

    cut = stopped["finish_reason"] == "repetition"
    assert cut.sum() >= 3
    assert stopped["text"][~cut].tolist() == looping["text"][~cut].tolist()
    assert (stopped["new_tokens"][cut] < 96).all()
    assert stopped["flag"][cut].notna().all()
    assert all(
        whole.startswith(part[:20]) for whole, part in zip(looping["text"][cut], stopped["text"][cut], strict=True)
    )


def test_beams_cannot_be_watched_for_loops() -> None:
    with pytest.raises(qwenvl_kit.ConfigError, match="num_beams=1"):
        qwenvl_kit.Config(num_beams=2, stop_repetition=True)
