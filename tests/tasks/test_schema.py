"""Schemas in five forms are one JSON Schema; what cannot be a table, or would not end, is refused."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import subprocess
import sys
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest

from qwenvl_kit import ConfigError
from qwenvl_kit.tasks.schema import read_schema


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Thing:
    shape: Literal["circle", "square"]
    colour: Colour
    size: float | None = None


class Scene(TypedDict):
    count: int
    things: NotRequired[list[Thing]]


class DatedScene(Scene):
    day: datetime.date


@dataclasses.dataclass
class Node:
    children: list[Node]


FLAT = {"type": "object", "properties": {"a": {"type": "boolean"}}}


def read(given: Any) -> Any:
    return json.loads(read_schema(given).source)


def test_a_dict_of_types_a_dataclass_and_a_json_schema_give_the_same_schema() -> None:
    @dataclasses.dataclass
    class Flat:
        a: bool

    assert read(Flat) == read({"a": bool}) == read(FLAT) == read({"a": {"type": "boolean"}})


def test_a_pydantic_model_and_one_within_a_dict_are_read() -> None:
    pydantic = pytest.importorskip("pydantic")
    part = pydantic.create_model("Part", x=(int, pydantic.Field(ge=0, le=9)))
    model = pydantic.create_model("Model", parts=(list[part], ...), note=(str | None, None))

    alone, within = read(model), read({"inner": model})

    assert alone["properties"]["parts"]["items"]["properties"] == {"x": {"type": "integer", "minimum": 0, "maximum": 9}}
    assert alone["required"] == ["parts"]
    assert within["properties"]["inner"] == alone


def test_columns_have_the_dtypes_of_their_fields() -> None:
    schema = read_schema(
        {"n": int, "x": float, "b": bool, "t": str, "maybe": int | None, "mixed": int | str, "many": list[str]}
        | {"colour": Colour, "day": datetime.date, "thing": Thing}
    )

    assert [one.dtype for one in schema.fields()] == [
        *("Int64", "Float64", "boolean", "string", "Int64", "object", "object", "string", "string", "object")
    ]
    assert [one.name for one in schema.fields(flatten=True)][-3:] == ["thing.shape", "thing.colour", "thing.size"]


def test_typed_dicts_keep_what_is_not_required_and_inherit() -> None:
    assert read(DatedScene)["required"] == ["count", "day"]
    assert list(read(DatedScene)["properties"]) == ["count", "things", "day"]


def test_open_objects_are_closed_and_integers_bounded() -> None:
    schema = read({"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}})

    assert schema["additionalProperties"] is False
    assert schema["required"] == ["n"]
    assert schema["properties"]["n"] == {"type": "integer", "minimum": 3, "maximum": 2**53 - 1}
    kept = {"type": "object", "properties": {"a": {}}, "required": [], "additionalProperties": {"type": "string"}}
    assert read(kept) == kept


def test_references_within_are_filled_in() -> None:
    schema = read(
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/a~1b", "description": "mine"}},
            "$defs": {"a/b": {"enum": ["x"]}},
        }
    )

    assert schema["properties"] == {"a": {"enum": ["x"]}}


def test_the_prompt_names_fields_types_and_descriptions() -> None:
    prompt = read_schema(
        {"count": Annotated[int, "how many objects"], "place": {"row": str}, "colour": Colour}
    ).prompt()

    assert "- count: whole number (how many objects)" in prompt
    assert "- place.row: text" in prompt
    assert '- colour: one of "red", "blue"' in prompt


def doubling(n: int) -> dict[str, Any]:
    """A schema of 2 to the n parts in n definitions."""
    defs: dict[str, Any] = {
        f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}"}, {"$ref": f"#/$defs/d{at + 1}"}]} for at in range(n)
    }
    return {"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": {**defs, f"d{n}": {"type": "null"}}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Node, "contains itself"),
        ({"properties": {"a": {"$ref": "#"}}, "type": "object"}, "contains itself"),
        (
            {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}},
            "contains itself",
        ),
        ({"a": {"$ref": "https://example.org/a.json"}}, "Nothing is fetched"),
        ({"a": {"$ref": "file:///etc/passwd"}}, "Nothing is fetched"),
        ({"a": {"$ref": "other.json#/a"}}, "Nothing is fetched"),
        ({"a": {"$ref": "#/$defs/none"}}, "which it does not have"),
        ({"a": {"$dynamicRef": "#x", "type": "object"}}, "can recur"),
        (doubling(20), "more than 5000 parts"),
        ({}, "at least one name"),
        ({"a": complex}, "which no JSON value is"),
        ({"a": {1: int}}, "at least one name"),
        ({"a": list}, "which no JSON value is"),
        ({"a": {"const": object()}}, "not JSON"),
        ({"a": {"enum": ["\ud800"]}}, "not JSON"),
        ("count: int", "which no JSON value is"),
        (None, None),
        ({"type": "object", "properties": {"a": [1]}, "$schema": "x"}, "which is no schema"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_read_is_refused(given: Any, message: str | None) -> None:
    if message is None:
        assert read(given) == {"type": "null"}
        return
    with pytest.raises(ConfigError, match=message):
        read_schema(given)


def test_columns_of_one_name_are_refused() -> None:
    schema = read_schema({"a.b": int, "a": {"b": int}})

    with pytest.raises(ConfigError, match=r"'a\.b'"):
        schema.fields(flatten=True)


def test_pydantic_is_not_imported_for_other_schemas() -> None:
    code = "from qwenvl_kit.tasks import schema; schema.read_schema({'a': int}); assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"import sys; {code}"], check=True)
