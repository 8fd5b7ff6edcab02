"""Random JSON Schemas: nested objects, arrays, enums, numbers with bounds, unicode names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=6)


@st.composite
def numbers(draw: Callable[..., Any]) -> Schema:
    kind = draw(st.sampled_from(["integer", "number"]))
    low, high = sorted(draw(st.tuples(st.integers(-1000, 1000), st.integers(-1000, 1000))))
    bounds = draw(st.sampled_from([{}, {"minimum": low}, {"maximum": high}, {"minimum": low, "maximum": high}]))
    return {"type": kind, **bounds}


LEAVES = st.one_of(
    numbers(),
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "string"},
            {"type": ["string", "null"]},
            {"type": "string", "maxLength": 4},
            {"type": "string", "pattern": "^[a-c]{2,5}$"},
            {"type": "string", "format": "date"},
        ]
    ),
    st.lists(st.one_of(TEXTS, st.integers(-9, 9), st.none()), min_size=1, max_size=4, unique_by=repr).map(
        lambda values: {"enum": values}
    ),
    TEXTS.map(lambda value: {"const": value}),
)


def _arrays(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    sizes = st.sampled_from([{}, {"maxItems": 2}, {"minItems": 1}, {"minItems": 1, "maxItems": 3}])
    return st.tuples(inner, sizes).map(lambda drawn: {"type": "array", "items": drawn[0], **drawn[1]})


@st.composite
def objects(draw: Callable[..., Any], inner: st.SearchStrategy[Schema] = LEAVES, least: int = 0) -> Schema:
    properties = draw(st.dictionaries(NAMES, inner, min_size=least, max_size=4))
    required = draw(st.lists(st.sampled_from(list(properties)), unique=True)) if properties else []
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


SCHEMAS = objects(st.recursive(LEAVES, lambda inner: st.one_of(_arrays(inner), objects(inner)), max_leaves=6), least=1)
