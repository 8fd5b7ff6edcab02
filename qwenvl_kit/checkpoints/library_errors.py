"""Turn what libraries raise about a checkpoint into errors that name its folder and a fix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from qwenvl_kit.errors import CheckpointError, QwenVLError

_OOM_MESSAGES = (
    "can't allocate memory",  # torch on the CPU
    "Failed to allocate memory",  # ONNX Runtime
    "bad allocation",  # C++ anywhere
    "std::bad_alloc",
)


@contextlib.contextmanager
def named_errors(folder: Path, trouble: str, fix: str, seen_as: Path | None = None) -> Iterator[None]:
    """Turn what a library raises about a checkpoint into a `CheckpointError` that names the folder and a fix.

    Memory that ran out says nothing about a folder and passes.
    """
    try:
        yield
    except QwenVLError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        said = f"{type(error).__name__}: {first_line(error)}".replace(str(seen_as or folder), str(folder))
        raise CheckpointError(f"{folder}: {trouble} ({said}); {fix}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, so that a smaller batch may succeed.

    Examples
    --------
    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shape mismatch"))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(message in str(error) for message in _OOM_MESSAGES)


def first_line(error: object) -> str:
    """The first line of an error, cut where it becomes a list."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if len(lines[0]) <= 300 else f"{lines[0][:300]}…"
