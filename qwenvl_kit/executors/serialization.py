"""Serialise what a driver and its workers exchange: work items out, results back.

Rows of one image stay together, so that it is read once and samples are counted as on one machine.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from qwenvl_kit.errors import RowError
from qwenvl_kit.types import Prompt, Result

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig

Kind = Literal["text", "whole", "number", "truth", "pickled"]
_KINDS: dict[str, Kind] = {  # by annotation, as types.py writes them
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
    """One cell and all its prompts."""

    cell: object
    prompts: tuple[str | Prompt, ...]

    def pack(self) -> bytes:
        """Return the item as bytes.

        Raises
        ------
        RowError
            The cell cannot be pickled.
        """
        try:
            return pickle.dumps((self.cell, self.prompts), protocol=5)
        except Exception as error:  # whatever the cell's own class raises
            raise RowError(
                "fetch",
                f"A cell of type {type(self.cell).__name__} cannot be handed to a worker: pickling it raises "
                f"{type(error).__name__}. Pass a URL, path, bytes or array.",
            ) from error

    @classmethod
    def unpack(cls, packed: bytes) -> WorkItem:
        """Return the item that `pack` made bytes of."""
        return cls(*pickle.loads(packed))


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """What ran in a batch, and notes for the record."""

    resolved: ResolvedConfig
    notes: tuple[str, ...]


@cache
def result_kinds() -> dict[str, Kind]:
    """Return the kind of each field of a `Result`, by name; values that are not plain are pickled."""
    return {field.name: _KINDS.get(str(field.type).removesuffix(" | None"), "pickled") for field in fields(Result)}


def to_fields(result: Result) -> dict[str, Any]:
    """Return a result as plain values, for a column of structs."""
    return {
        name: pickle.dumps(value) if kind == "pickled" and value is not None else value
        for name, kind in result_kinds().items()
        for value in [getattr(result, name)]
    }


def from_fields(values: Mapping[str, Any], row: int) -> Result:
    """Return the result of `to_fields`, for a row of the driver's."""
    kinds = result_kinds()
    whole = {
        name: pickle.loads(value) if kinds[name] == "pickled" and value is not None else value
        for name, value in values.items()
    }
    return Result(**{**whole, "row": row})


def pack_error(error: BaseException) -> bytes:
    """Return an exception as bytes; for one that cannot be pickled, its type's name and its message."""
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)
    except Exception:  # noqa: BLE001  # exceptions of other libraries fail in their own ways
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return packed


def unpack_error(packed: bytes) -> BaseException:
    """Return the exception that `pack_error` made bytes of."""
    error: BaseException = pickle.loads(packed)
    return error
