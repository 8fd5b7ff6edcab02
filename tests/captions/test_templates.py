"""A prompt quotes the row's own values, and braces that are no fields stay text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.captions.templates import fill_template
from qwenvl_kit.errors import ConfigError, RowError

FRAME = pd.DataFrame(
    {
        "image": ["/data/10_dog/rex.small.png", "https://example.org/cats/tom%20cat.jpg?w=3"],
        "tags": [["old", "brown"], np.array(["young"])],
        "file no": [3, 4],
        "age": [3.0, None],
    }
)


def filled(template: str, frame: pd.DataFrame = FRAME) -> list[str | RowError]:
    return fill_template(template, frame, frame["image"].tolist())


def test_columns_and_parts_of_the_files_name_stand_in_a_prompt() -> None:
    assert filled("{name} ({stem}) of {folder}, no. {file no}: {tags}") == [
        "rex.small.png (rex.small) of 10_dog, no. 3: old, brown",
        "tom cat.jpg (tom cat) of cats, no. 4: young",
    ]


def test_a_column_goes_before_a_part_of_the_files_name() -> None:
    assert filled("{name}", FRAME.assign(name=["a", "b"])) == ["a", "b"]


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ('Answer as {"breed": "…", "parts": {"n": 1}}.', 'Answer as {"breed": "…", "parts": {"n": 1}}.'),
        ("{{tags}}", "{tags}"),
        ("{{anything}}", "{anything}"),
        ("{{{stem}}}", "{rex.small}"),
        ("{{{{stem}}}}", "{{stem}}"),
        ('{"name": "{stem}"}', '{"name": "rex.small"}'),
        (r"\frac{1}{2} {} { } {0} {a.b} {a!r} {a:>3} { stem }", r"\frac{1}{2} {} { } {0} {a.b} {a!r} {a:>3} { stem }"),
        ("{{1, 2}, {3}}", "{{1, 2}, {3}}"),
        ("{stem", "{stem"),
        ("stem}", "stem}"),
    ],
)
def test_braces_stay_where_they_are_no_field(template: str, wanted: str) -> None:
    assert filled(template)[0] == wanted


@given(st.text(alphabet="{} ab,:\"'\n1", max_size=30).filter(lambda text: "{a" not in text and "{b" not in text))
def test_a_prompt_without_names_in_braces_is_what_it_was(text: str) -> None:
    assert filled(text) == [text, text]


@given(st.text(max_size=30))
def test_a_value_is_never_read_as_a_template(value: str) -> None:
    frame = pd.DataFrame({"image": [None], "value": pd.Series([value], dtype=object)})

    assert filled("<{value}>", frame) == [f"<{value}>"]


def test_attributes_of_values_are_out_of_reach() -> None:
    assert filled("{tags.__class__} {tags[0]}")[0] == "{tags.__class__} {tags[0]}"


def test_a_misspelt_field_is_told_with_the_nearest_and_the_way_to_write_braces() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean \{tags\}\? Write \{\{tag\}\} for the text \{tag\}"):
        filled("{tag}")


def test_a_missing_value_is_the_error_of_its_row() -> None:
    first, second = filled("{age} years")

    assert first == "3 years"
    assert isinstance(second, RowError)
    assert "{age} is missing" in second.message


def test_a_row_whose_image_has_no_file_cannot_quote_its_name() -> None:
    frame = pd.DataFrame({"image": [np.zeros((4, 4, 3), np.uint8)]})

    (found,) = filled("{name}", frame)

    assert isinstance(found, RowError)
    assert "has none" in found.message


def test_a_name_that_is_no_text_is_quoted_with_a_replacement(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": pd.Series([str(tmp_path / "caf\udce9.png")], dtype=object)})

    assert filled("{stem}", frame) == ["caf?"]


def test_what_no_text_can_say_is_the_error_of_its_row() -> None:
    (found,) = filled("{thing}", pd.DataFrame({"image": ["a.png"], "thing": [{"a": 1}]}))

    assert isinstance(found, RowError)
    assert "of type dict" in found.message
