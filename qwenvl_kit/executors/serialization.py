"""What travels between a driver and its workers: rows that share a picture go out, whole results come back.

Rows of one picture stay together, so that it is read once and repeated draws count as they do on one machine.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from qwenvl_kit.errors import RowError
from qwenvl_kit.types import Result

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig

Kind = Literal["text", "whole", "number", "truth", "pickled"]
_KINDS: dict[str, Kind] = {  # by annotation, as records.py writes them
    "str": "text",
    "Status": "text",
    "Stage": "text",
    "FinishReason": "text",
    "int": "whole",
    "float": "number",
    "bool": "truth",
}


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One cell, and every prompt that is asked of it."""

    cell: object
    prompts: tuple[str, ...]

    def pack(self) -> bytes:
        """As bytes.

        Raises
        ------
        RowError
            The cell cannot be handed to another process.
        """
        try:
            return pickle.dumps((self.cell, self.prompts), protocol=5)
        except Exception as error:  # whatever a picture's own class raises
            raise RowError(
                "fetch",
                f"a cell of type {type(self.cell).__name__} cannot be handed to a worker ({type(error).__name__}); "
                "give a URL, path, bytes or array",
            ) from error

    @classmethod
    def unpack(cls, packed: bytes) -> WorkItem:
        """The inverse of `pack`."""
        return cls(*pickle.loads(packed))


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """What a worker tells of a batch beside its results."""

    resolved: ResolvedConfig
    notes: tuple[str, ...]


@cache
def result_kinds() -> dict[str, Kind]:
    """Name and kind of each field of a `Result`; what is no plain value travels as a pickle."""
    return {field.name: _KINDS.get(str(field.type).removesuffix(" | None"), "pickled") for field in fields(Result)}


def to_fields(result: Result) -> dict[str, Any]:
    """A result as plain values, for a column of structs."""
    return {
        name: pickle.dumps(value) if kind == "pickled" and value is not None else value
        for name, kind in result_kinds().items()
        for value in [getattr(result, name)]
    }


def from_fields(values: Mapping[str, Any], row: int) -> Result:
    """The result that `to_fields` took apart, for a row of the driver's."""
    kinds = result_kinds()
    whole = {
        name: pickle.loads(value) if kinds[name] == "pickled" and value is not None else value
        for name, value in values.items()
    }
    return Result(**{**whole, "row": row})


def pack_error(error: BaseException) -> bytes:
    """An exception as bytes; one that cannot be taken apart goes as its type's name and its message."""
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)
    except Exception:  # noqa: BLE001  # exceptions of other libraries fail in their own ways
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return packed


def unpack_error(packed: bytes) -> BaseException:
    """The inverse of `pack_error`."""
    error: BaseException = pickle.loads(packed)
    return error
