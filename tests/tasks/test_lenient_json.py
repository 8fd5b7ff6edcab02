"""JSON is found in a model's text; what was repaired is said, and what is incomplete is not made up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.tasks.lenient_json import parse_json

PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**9), 10**9),
        st.floats(-1e6, 1e6),
        st.text(st.characters(codec="utf-8"), max_size=8),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=12,
)
CONTAINERS = st.one_of(
    st.lists(PLAIN, max_size=4), st.dictionaries(st.text(st.characters(codec="utf-8")), PLAIN, max_size=4)
)


@given(value=CONTAINERS, ascii_only=st.booleans(), indent=st.sampled_from([None, 2]))
def test_valid_json_is_read_as_it_is(value: Any, ascii_only: bool, indent: int | None) -> None:
    found = parse_json(json.dumps(value, ensure_ascii=ascii_only, indent=indent))

    assert found is not None
    assert (found.value, found.repairs, found.cut) == (value, (), None)


def is_part(part: Any, whole: Any) -> bool:
    if isinstance(whole, dict) and isinstance(part, dict):
        return all(name in whole and is_part(one, whole[name]) for name, one in part.items())
    if isinstance(whole, list) and isinstance(part, list):
        return part == whole[: len(part)]
    return bool(part == whole)


@given(value=CONTAINERS, data=st.data())
def test_of_a_cut_text_only_what_is_complete_is_kept(value: Any, data: st.DataObject) -> None:
    text = json.dumps(value, ensure_ascii=False)
    cut = text[: data.draw(st.integers(1, len(text) - 1))]

    found = parse_json(cut, is_cut=True)

    assert found is not None
    assert found.cut is not None
    assert is_part(found.value, value)


@given(text=st.text("{}[]\"':,0a\\ \n`tn’”-.", max_size=40))
def test_no_text_raises(text: str) -> None:
    parse_json(text)


@pytest.mark.parametrize(
    ("text", "value", "repairs"),
    [
        ('```json\n{"a": 1}\n```', {"a": 1}, ("removed a code fence",)),
        ('Sure!\n```\n{"a": 1}\n``` Bye', {"a": 1}, ("removed a code fence", "removed text around it")),
        (
            "{'a': 'it\\'s', 'b': None}",
            {"a": "it's", "b": None},
            ("replaced single quotes", "replaced Python's literals"),
        ),
        ("{'a': 'the dog's tail'}", {"a": "the dog's tail"}, ("replaced single quotes",)),
        ("{'a': 'say \"x\"'}", {"a": 'say "x"'}, ("replaced single quotes",)),
        ("{“a”: “b”}", {"a": "b"}, ("replaced typographic quotes",)),
        ('{"a": [1, 2,], }', {"a": [1, 2]}, ("removed a trailing comma",)),
        ("{a: 1}", {"a": 1}, ("quoted names",)),
        ('{"a": .5, "b": 007}', {"a": 0.5, "b": 7.0}, ("rewrote a number",)),
        ('{"a": "x\ny"}', {"a": "x\ny"}, ()),
        ('{"a": "\\d"}', {"a": "\\d"}, ("kept wrong escapes",)),
        ('The answer is {"a": 1}.', {"a": 1}, ("removed text around it",)),
        ("3", 3, ()),
        ('"red"', "red", ()),
    ],
)
def test_what_was_repaired_is_said(text: str, value: Any, repairs: tuple[str, ...]) -> None:
    found = parse_json(text)

    assert found is not None
    assert (found.value, found.repairs) == (value, repairs)


@pytest.mark.parametrize("text", ["", "no JSON here", "{{{", "[" * 5000, "{'a' 1}", "}"])
def test_where_there_is_none_nothing_is_found(text: str) -> None:
    assert (found := parse_json(text)) is None or found.value in ({}, [])


def test_spans_say_where_a_value_stands() -> None:
    text = '{"a": [10, "x"], "b": true}'
    found = parse_json(text)

    assert found is not None
    assert {path: text[begin:end] for path, (begin, end) in found.spans.items()} == {
        ("a", 0): "10",
        ("a", 1): '"x"',
        ("b",): "true",
    }
