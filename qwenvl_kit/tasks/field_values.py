"""Values of an answer as the columns of a schema take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qwenvl_kit.errors import printable
from qwenvl_kit.tasks.schema import kinds_of

if TYPE_CHECKING:
    from qwenvl_kit.tasks.schema import Field

_SHOWN = 60


def fit(value: Any, field: Field) -> tuple[Any, str | None]:
    """Return a value as its column takes it, and what was changed; None where it does not fit."""
    kinds, allowed = kinds_of(field.schema), field.schema.get("enum")
    if value is None or (allowed is not None and value in allowed):
        return value, None
    shown = printable(repr(value), _SHOWN)
    fitted = _as_kind(value, field.dtype) if kinds else value
    if fitted is None or (allowed is not None and fitted not in allowed):
        return None, f"{shown} is left out"
    if field.dtype == "object" and not _is_kind(value, kinds):
        return None, f"{shown} is left out"
    is_same = fitted is value or (fitted == value and not isinstance(value, bool | str))
    return fitted, None if is_same else f"read {shown}"


def _as_kind(value: Any, dtype: str) -> Any:
    """Return a value of a column's type; a number may be written as text. None where it is none."""
    if dtype == "object":
        return value
    if dtype == "string":
        return value if isinstance(value, str) else None
    if dtype == "boolean":
        return {"true": True, "yes": True, "false": False, "no": False}.get(str(value).strip().lower())
    try:
        number = float(value) if not isinstance(value, bool) and isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None
    if number is None or dtype == "Float64":
        return number
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else None
    return int(number) if number.is_integer() and abs(number) < 2**53 else None


def _is_kind(value: Any, kinds: set[str]) -> bool:
    names = {"array": list, "object": dict, "string": str, "boolean": bool, "integer": int, "number": int | float}
    return not kinds or any(isinstance(value, names[kind]) for kind in kinds if kind in names)
