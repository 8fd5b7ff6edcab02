"""Turn Python types into JSON Schema; pydantic's models do so themselves, and pydantic is never imported."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from qwenvl_kit.errors import ConfigError, printable

_PLAIN: dict[Any, dict[str, Any]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    str: {"type": "string"},
    None: {"type": "null"},
    type(None): {"type": "null"},
    datetime.date: {"type": "string", "format": "date"},
    datetime.datetime: {"type": "string", "format": "date-time"},
    Any: {},
}
_LISTS = ("anyOf", "oneOf", "allOf", "enum")
_ALLOWED = "Use int, float, bool, str, None, list[…], dict[str, …], Literal, Enum, | or nested dicts and classes."


def schema_of(given: object) -> dict[str, Any]:
    """Return the JSON Schema of a schema in any form.

    Raises
    ------
    ConfigError
        It has no such form, contains itself, or holds values that JSON cannot.

    Examples
    --------
    >>> schema_of({"count": int})["properties"]
    {'count': {'type': 'integer'}}
    """
    schema = _schema(given, ())
    try:
        json.dumps(schema, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"The schema is not JSON ({printable(str(error), 200)}). Use plain values only.") from error
    return schema


def is_json_schema(given: Mapping[Any, Any]) -> bool:
    """Return whether a mapping is a JSON Schema, and not a dict of types."""
    kind = given.get("type")
    return (
        isinstance(kind, str)
        or (isinstance(kind, list) and all(isinstance(one, str) for one in kind))
        or any(isinstance(given.get(name), list) for name in _LISTS)
        or isinstance(given.get("$ref"), str)
        or "$schema" in given
        or ("const" in given and not isinstance(given["const"], type))
        or (
            isinstance(given.get("properties"), Mapping)
            and all(_is_schema(one) for one in given["properties"].values())
        )
    )


def _is_schema(value: object) -> bool:
    return isinstance(value, bool) or (isinstance(value, Mapping) and (not value or is_json_schema(value)))


def _schema(given: Any, inside: tuple[object, ...]) -> dict[str, Any]:
    if any(given is one for one in inside):
        raise ConfigError(f"The schema contains itself (at {_shown(given)}). Write out the levels that you need.")
    if isinstance(given, Mapping):
        return _mapping(given, inside)
    if isinstance(given, typing.Hashable) and given in _PLAIN:
        return dict(_PLAIN[given])
    if isinstance(given, type) and get_origin(given) is None:
        return _class(given, inside)
    return _generic(given, inside)


def _mapping(given: Mapping[Any, Any], inside: tuple[object, ...]) -> dict[str, Any]:
    if is_json_schema(given):
        return dict(given)
    if not given or any(not isinstance(name, str) for name in given):
        raise ConfigError(f"The schema {_shown(given)} is invalid. Pass at least one name with its type.")
    return _object({name: _schema(one, (*inside, given)) for name, one in given.items()}, list(given))


def _class(given: type, inside: tuple[object, ...]) -> dict[str, Any]:
    if callable(own := getattr(given, "model_json_schema", None)):  # pydantic
        return _own(given, own)
    if issubclass(given, enum.Enum):
        return {"enum": [one.value for one in given]}
    if dataclasses.is_dataclass(given):
        names = [one.name for one in dataclasses.fields(given)]
        required = names
    elif is_typeddict(given):
        names = list(_hints(given))
        required = [name for name, hint in _hints(given).items() if _is_required(given, name, hint)]
    else:
        raise ConfigError(f"The schema contains {_shown(given)}, which no JSON value is. {_ALLOWED}")
    hints = _hints(given)
    return _object({name: _schema(hints[name], (*inside, given)) for name in names}, required)


def _is_required(given: type, name: str, hint: Any) -> bool:
    """Return whether a TypedDict needs a key; it does not see marks in annotations that are text."""
    origin = get_origin(hint)
    if origin in (typing.Required, typing.NotRequired):
        return origin is typing.Required
    return name in getattr(given, "__required_keys__", ())


def _own(given: type, own: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = own()
    except Exception as error:  # whatever pydantic raises for a type that JSON lacks
        raise ConfigError(f"{given.__name__} has no JSON Schema ({printable(str(error), 200)}). {_ALLOWED}") from error
    return found


def _hints(given: type) -> dict[str, Any]:
    try:
        return get_type_hints(given, include_extras=True)
    except Exception as error:  # a name that exists only while types are checked
        raise ConfigError(
            f"The annotations of {given.__name__} cannot be read: {error}. Import their names."
        ) from error


def _generic(given: Any, inside: tuple[object, ...]) -> dict[str, Any]:
    origin, arguments = get_origin(given), get_args(given)
    if origin is typing.Annotated:
        described = next((one for one in arguments[1:] if isinstance(one, str)), None)
        schema = _schema(arguments[0], inside)
        return schema if described is None else {**schema, "description": described}
    if origin in (typing.Required, typing.NotRequired):
        return _schema(arguments[0], inside)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(one, inside) for one in arguments]}
    if origin in (list, Sequence) or (origin is tuple and arguments[1:] == (...,)):
        return {"type": "array", "items": _schema(arguments[0], inside)}
    if origin in (dict, Mapping) and arguments[0] is str:
        return {"type": "object", "additionalProperties": _schema(arguments[1], inside)}
    raise ConfigError(f"The schema contains {_shown(given)}, which no JSON value is. {_ALLOWED}")


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _shown(value: object) -> str:
    return printable(value.__name__ if isinstance(value, type) else repr(value), 80)
