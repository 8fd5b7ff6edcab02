"""Which prompt a row gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.errors import ConfigError, RowError
from qwenvl_kit.prompts import check_whole, fill, is_missing

MISSING = [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, ""]


@given(st.lists(st.one_of(st.sampled_from(MISSING), st.text(min_size=1))))
def test_each_row_keeps_its_own_prompt_and_the_others_get_the_default(prompts: list[Any]) -> None:
    filled = fill(prompts, "the default", len(prompts))

    assert filled == [prompt if isinstance(prompt, str) and prompt else "the default" for prompt in prompts]


@pytest.mark.parametrize("missing", MISSING, ids=repr)
@pytest.mark.parametrize("default", [None, ""], ids=repr)
def test_a_row_without_prompt_and_default_has_none(missing: object, default: str | None) -> None:
    assert fill([missing, "Own?"], default, 2) == [None, "Own?"]


@pytest.mark.parametrize("default", ["What?", None])
def test_no_prompts_at_all_is_the_default_for_every_row(default: str | None) -> None:
    assert fill(None, default, 3) == [default] * 3
    assert fill(None, default, 0) == []


@pytest.mark.parametrize("form", [list, tuple, pd.Series, np.array, pd.array], ids=lambda form: form.__name__)
def test_prompts_come_in_any_column(form: Any) -> None:
    assert fill(form(["a?", "b?"]), None, 2) == ["a?", "b?"]


@pytest.mark.parametrize("n_prompts", [0, 1, 3])
def test_another_length_than_the_rows_is_refused_with_both_numbers(n_prompts: int) -> None:
    with pytest.raises(ConfigError, match=f"{n_prompts} entries for 2 rows"):
        fill(["?"] * n_prompts, "default", 2)


def test_one_text_for_all_rows_is_not_taken_apart_into_letters() -> None:
    with pytest.raises(ConfigError, match="prompt='why'"):
        fill("why", "default", 3)


@pytest.mark.parametrize("prompt", [7, 0.5, b"bytes", ["nested"], True], ids=repr)
def test_what_is_no_text_is_refused_with_its_position_and_type(prompt: object) -> None:
    with pytest.raises(ConfigError, match=rf"type {type(prompt).__name__} at position 1"):
        fill(["fine", prompt], "default", 2)


@pytest.mark.parametrize("prompt", [" ", "0", "nan", "None", "\n", np.str_("a")], ids=repr)
def test_what_only_looks_empty_is_a_prompt(prompt: str) -> None:
    assert not is_missing(prompt)


@given(st.text())
def test_whole_characters_pass(prompt: str) -> None:
    check_whole(prompt)


def test_half_a_character_is_the_rows_error_with_its_place() -> None:
    with pytest.raises(RowError, match="unpaired surrogate at index") as caught:
        check_whole("图\ud800")
    assert caught.value.stage == "generate"
    assert "index 1" in caught.value.message
