"""Columns by their labels: tuples, levels, and what is no label."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from helpers.fake_backends import gray

from qwenvl_kit import ColumnNotFound, ConfigError
from qwenvl_kit.columns import pick_column

ECHO: dict[str, Any] = {"backend": "echo", "progress": False}
QUESTIONS = ["What is A?", "What is B?", "What is C?"]


def levels(n_rows: int = 3) -> pd.DataFrame:
    return pd.DataFrame({("img", "front"): [gray(n) for n in range(3)], ("text", "q"): QUESTIONS}).iloc[:n_rows]


def flat(n_rows: int = 3) -> pd.DataFrame:
    df = levels(n_rows)
    df.columns = df.columns.to_flat_index()
    return df


@pytest.mark.parametrize("make", [levels, flat])
@pytest.mark.parametrize("n_rows", [2, 3])
def test_a_tuple_that_is_a_label_names_the_column_of_prompts(make: Any, n_rows: int) -> None:
    df = make(n_rows)
    told = df.vl.caption(("img", "front"), prompts=("text", "q"), **ECHO).tolist()
    assert told == df.vl.ask(("img", "front"), ("text", "q"), **ECHO).tolist()
    assert [text[:10] for text in told] == QUESTIONS[:n_rows]


@pytest.mark.parametrize("make", [levels, flat])
def test_a_tuple_that_is_a_label_names_the_column_of_truths(make: Any) -> None:
    df = make(2)
    found = df.vl.compare(
        ("img", "front"), vary={"resized_height": [56]}, prompts=("text", "q"), truth=("text", "q"), **ECHO
    )
    assert found.frame["truth"].tolist() == QUESTIONS[:2]


def test_a_tuple_that_is_no_label_holds_prompts() -> None:
    told = levels(2).vl.caption(("img", "front"), prompts=("One?", "Two?"), **ECHO)
    assert [text[:4] for text in told] == ["One?", "Two?"]


def test_a_level_is_said_to_be_one() -> None:
    with pytest.raises(ColumnNotFound, match=r"'img' is a level of the column labels.*\('img', 'front'\)"):
        levels().vl.caption("img", **ECHO)
    with pytest.raises(ColumnNotFound, match="'text' is a level"):
        levels().vl.ask(("img", "front"), "text", **ECHO)


def test_a_column_that_stands_twice_is_told_from_a_level() -> None:
    df = pd.concat([levels(), levels()], axis=1)
    with pytest.raises(ColumnNotFound, match="2 columns have the label"):
        df.vl.caption(("img", "front"), **ECHO)


def test_what_cannot_be_a_label_is_said_in_words() -> None:
    df = pd.DataFrame({"image": [gray(1)]})
    with pytest.raises(ColumnNotFound, match=r"of type list is not a column label.*Pass one label.*'image'"):
        df.vl.caption(["image"], **ECHO)
    with pytest.raises(ColumnNotFound, match="of type list is not a column label"):
        df.vl.show(["image"])


def test_long_and_odd_labels_are_shortened_in_messages() -> None:
    df = pd.DataFrame({f"\x1b[31m{'x' * 500}{n}": [1] for n in range(200)})
    with pytest.raises(ColumnNotFound) as caught:
        df.vl.caption("image", **ECHO)
    message = str(caught.value)
    assert "170 more" in message
    assert len(message) < 5_000
    assert message.isprintable()


def test_a_misspelt_column_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(
        ColumnNotFound, match=r"No column 'imgae'\. Did you mean 'image'\? The frame has: 'image', 'id'"
    ):
        pick_column(pd.DataFrame({"image": [1], "id": [2]}), "imgae")


def test_a_list_of_questions_is_one_per_row() -> None:
    df = pd.DataFrame({"image": [gray(1), gray(2)]})
    answers = df.vl.ask("image", ["What is it?", "Is it red?"], **ECHO)

    assert [text.partition(" [")[0] for text in answers] == ["What is it?", "Is it red?"]
    with pytest.raises(ConfigError, match="prompts has 1 entries for 2 rows"):
        df.vl.ask("image", ["Alone?"], **ECHO)
