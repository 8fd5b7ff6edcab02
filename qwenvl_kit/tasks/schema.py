"""Read the schema of an answer: JSON Schema, dict of types, dataclass, TypedDict or pydantic model.

What a schema leaves open is closed, so that answers fit a table: see `AnswerSchema`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwenvl_kit.errors import ConfigError, printable
from qwenvl_kit.tasks.schema_types import schema_of

Schema = Mapping[str, Any]
_MAX_NODES = 5_000  # of a schema with its references filled in, which may double with each
_MAX_DEPTH = 64
_SAFE = 2**53 - 1  # beyond it JSON readers round integers: https://www.rfc-editor.org/rfc/rfc8259#section-6
_ANNOTATIONS = frozenset(
    {
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"),
        *("$schema", "$id", "$comment", "$defs", "definitions", "$anchor"),
    }
)
_IN_MAPPINGS = ("properties", "patternProperties")
_IN_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_IN_PLACE = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else")
_DTYPES = {"integer": "Int64", "number": "Float64", "boolean": "boolean", "string": "string"}
_WORDS = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text"}


@dataclass(frozen=True, slots=True)
class Field:
    """A value of an answer that becomes a column.

    Attributes
    ----------
    path : tuple of str
        Names of properties from the outside in.
    schema : mapping
        Of the value.
    """

    path: tuple[str, ...]
    schema: Schema

    @property
    def name(self) -> str:
        """The column's name, dotted for nested values."""
        return ".".join(self.path)

    @property
    def dtype(self) -> str:
        """``Int64``, ``Float64``, ``boolean``, ``string``, or ``object`` for lists, objects and mixed values."""
        kinds = kinds_of(self.schema) - {"null"}
        if kinds == {"integer", "number"}:
            return "Float64"
        return _DTYPES.get(next(iter(kinds)), "object") if len(kinds) == 1 else "object"


@dataclass(frozen=True, slots=True)
class AnswerSchema:
    """The JSON Schema of an answer, without references.

    Objects have no other properties than the listed ones unless ``additionalProperties`` says so, and all of them where
    there is no ``required``. Integers without bounds stay within ±(2⁵³ - 1).

    Attributes
    ----------
    source : str
        The schema as JSON.
    described : mapping
        The same with titles and descriptions.
    """

    source: str
    described: Schema

    @property
    def is_object(self) -> bool:
        """Whether an answer is an object, whose properties are columns; else there is one column ``value``."""
        return kinds_of(self.described) == {"object"} and bool(properties_of(self.described))

    def fields(self, *, flatten: bool = False) -> list[Field]:
        """Return what becomes a column; with `flatten`, the properties of nested objects.

        Raises
        ------
        ConfigError
            Two columns would have one name.
        """
        if not self.is_object:
            return [Field(("value",), self.described)]
        found = list(_fields(self.described, (), flatten=flatten))
        names = [one.name for one in found]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"Two fields of the schema would be the column {twice.pop()!r}. Rename one of them.")
        return found

    def prompt(self) -> str:
        """Return a prompt that names the fields."""
        if not self.is_object:
            return f"Answer with JSON only: {_words(self.described)}."
        lines = [f"- {one.name}: {_words(one.schema)}" for one in _fields(self.described, (), flatten=True)]
        return "\n".join(["Describe the image as a JSON object with these fields:", *lines, "Answer with JSON only."])


def read_schema(given: object) -> AnswerSchema:
    """Return the schema of an answer.

    Parameters
    ----------
    given : mapping, type or pydantic model
        A JSON Schema, a dict of types such as ``{"count": int}``, a dataclass, a TypedDict or a pydantic model.

    Raises
    ------
    ConfigError
        It is none of these; it has recursion, a reference to outside (none is fetched) or too many parts.

    Examples
    --------
    >>> schema = read_schema({"count": int, "colours": list[str]})
    >>> [(one.name, one.dtype) for one in schema.fields()]
    [('count', 'Int64'), ('colours', 'object')]
    """
    root = schema_of(given)
    described = _Reader(root).read(root, (), is_closed=True)
    return AnswerSchema(json.dumps(_bare(described), ensure_ascii=False, separators=(",", ":")), described)


def kinds_of(schema: Schema) -> set[str]:
    """Return the types of JSON values that a schema allows; empty where it allows any."""
    if "const" in schema or "enum" in schema:
        return {_kind(value) for value in schema.get("enum", [schema.get("const")])}
    if isinstance(kind := schema.get("type"), str):
        return {kind}
    if isinstance(kind, Sequence):
        return set(kind)
    for name in ("anyOf", "oneOf"):
        if name in schema:
            some = [kinds_of(one) for one in schema[name]]
            return set().union(*some) if all(some) else set()
    return {"object"} if properties_of(schema) else set()


def properties_of(schema: Schema) -> dict[str, Schema]:
    """Return the properties of an object, with those of ``allOf``."""
    found: dict[str, Schema] = dict(schema.get("properties", {}))
    for one in schema.get("allOf", ()):
        found |= properties_of(one)
    return found


def object_in(schema: Schema) -> Schema | None:
    """Return the only object that a schema allows, beside null; None for others."""
    if kinds_of(schema) - {"null"} != {"object"}:
        return None
    for name in ("anyOf", "oneOf"):
        if name in schema:
            some = [one for one in schema[name] if kinds_of(one) != {"null"}]
            return object_in(some[0]) if len(some) == 1 else None
    return schema if properties_of(schema) else None


class _Reader:
    """Fill in the references of a schema, and close what it leaves open."""

    def __init__(self, root: Schema) -> None:
        self._root, self._n_nodes = root, 0

    def read(self, schema: Any, inside: tuple[str, ...], *, is_closed: bool, depth: int = 0) -> dict[str, Any]:
        if schema is True:
            return {}
        if not isinstance(schema, Mapping):
            raise ConfigError(f"The schema contains {_shown(schema)}, which is no schema. Use a mapping there.")
        self._n_nodes += 1
        if self._n_nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise ConfigError(
                f"The schema has more than {_MAX_NODES} parts or {_MAX_DEPTH} levels with its references. Ask for less."
            )
        if depth and "$defs" in schema:  # a pydantic model within a dict of types
            return _Reader(schema).read(schema, (), is_closed=is_closed)
        if "$ref" in schema:
            return self._referred(schema, inside, is_closed=is_closed, depth=depth)
        if odd := next((name for name in ("$dynamicRef", "$recursiveRef") if name in schema), None):
            raise ConfigError(f"The schema has {odd}, which can recur. Write out the levels that you need.")
        is_closed = is_closed and "allOf" not in schema
        read = {
            name: self._part(name, value, inside, is_closed=is_closed and name != "allOf", depth=depth + 1)
            for name, value in schema.items()
            if name not in ("$defs", "definitions")
        }
        return _closed(read) if is_closed else read

    def _part(self, name: str, value: Any, inside: tuple[str, ...], *, is_closed: bool, depth: int) -> Any:
        if name in _IN_MAPPINGS and isinstance(value, Mapping):
            return {key: self.read(one, inside, is_closed=is_closed, depth=depth) for key, one in value.items()}
        if name in _IN_LISTS and isinstance(value, list | tuple):
            return [self.read(one, inside, is_closed=is_closed, depth=depth) for one in value]
        if name in _IN_PLACE and not isinstance(value, bool):
            return self.read(value, inside, is_closed=is_closed, depth=depth)
        return value

    def _referred(self, schema: Schema, inside: tuple[str, ...], *, is_closed: bool, depth: int) -> dict[str, Any]:
        pointer = schema["$ref"]
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise ConfigError(
                f"The schema refers to {_shown(pointer)}, outside of it. Nothing is fetched. Copy it into $defs."
            )
        if pointer in inside or pointer == "#":
            raise ConfigError(f"The schema contains itself (at {pointer}). Write out the levels that you need.")
        target = self._root
        for part in pointer[2:].split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or name not in target:
                raise ConfigError(f"The schema refers to {_shown(pointer)}, which it does not have. Add it.")
            target = target[name]
        beside = {name: value for name, value in schema.items() if name != "$ref"}
        read = self.read(target, (*inside, pointer), is_closed=is_closed, depth=depth + 1)
        return {**read, **self.read(beside, inside, is_closed=False, depth=depth + 1)}


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without open objects and without integers of any length, which a model may never end."""
    if isinstance(schema.get("properties"), Mapping):
        schema.setdefault("additionalProperties", False)
        schema.setdefault("required", list(schema["properties"]))
    if "integer" in kinds_of(schema) and "type" in schema and not {"enum", "const"} & schema.keys():
        if not {"minimum", "exclusiveMinimum"} & schema.keys():
            schema["minimum"] = -_SAFE
        if not {"maximum", "exclusiveMaximum"} & schema.keys():
            schema["maximum"] = _SAFE
    return schema


def _bare(schema: Any) -> Any:
    """Return a schema without annotations, which llguidance need not know."""
    if not isinstance(schema, Mapping):
        return schema
    bare: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _IN_MAPPINGS and isinstance(value, Mapping):
            bare[name] = {key: _bare(one) for key, one in value.items()}
        elif name in _IN_LISTS and isinstance(value, list):
            bare[name] = [_bare(one) for one in value]
        elif name in _IN_PLACE:
            bare[name] = _bare(value)
        elif name not in _ANNOTATIONS:
            bare[name] = value
    return bare


def _fields(schema: Schema, path: tuple[str, ...], *, flatten: bool) -> Iterator[Field]:
    for name, one in properties_of(schema).items():
        inner = object_in(one) if flatten else None
        if inner is None:
            yield Field((*path, name), one)
        else:
            yield from _fields(inner, (*path, name), flatten=True)


def _words(schema: Schema) -> str:
    """Return what a value is, for a prompt."""
    kinds, values = kinds_of(schema), schema.get("enum")
    if values is not None:
        what = f"one of {', '.join(json.dumps(one, ensure_ascii=False) for one in values)}"
    elif kinds == {"array"} and isinstance(schema.get("items"), Mapping):
        what = f"list of: {_words(schema['items'])}"
    elif kinds == {"object"} and properties_of(schema):
        inner = ", ".join(f"{name} ({_words(one)})" for name, one in properties_of(schema).items())
        what = f"object with {inner}"
    else:
        what = " or ".join(_WORDS.get(kind, kind) for kind in sorted(kinds)) or "any value"
    description = schema.get("description")
    return f"{what} ({description})" if isinstance(description, str) else what


def _kind(value: object) -> str:
    kinds = ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"), (dict, "object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def _shown(value: object) -> str:
    return printable(repr(value), 60)
