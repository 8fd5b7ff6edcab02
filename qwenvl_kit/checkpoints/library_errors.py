"""Turn errors of libraries about a checkpoint into errors that name its folder and a fix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from qwenvl_kit.errors import CheckpointError, QwenVLError

_OOM_MESSAGES = (
    "can't allocate memory",  # torch on the CPU
    "CUDA error: out of memory",  # outside of torch's allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Failed to allocate memory",  # ONNX Runtime
    "bad allocation",  # C++ anywhere
    "std::bad_alloc",
)


@contextlib.contextmanager
def named_errors(folder: Path, trouble: str, fix: str, seen_as: Path | None = None) -> Iterator[None]:
    """Raise a library's errors as `CheckpointError`, except out-of-memory errors, which are no fault of the folder.

    Parameters
    ----------
    folder : Path
        Named in the message.
    trouble : str
        What is wrong, such as ``its config.json cannot be used``.
    fix : str
        What to do: a sentence without its full stop.
    seen_as : Path, optional
        A temporary folder that the library's message may name instead.
    """
    try:
        yield
    except QwenVLError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        cause = f"{type(error).__name__}: {first_line(error)}".replace(str(seen_as or folder), str(folder))
        raise CheckpointError(f"{folder}: {trouble} ({cause}). {fix}.") from error


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
    """Return the first line of an error, at most 300 characters of it."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if len(lines[0]) <= 300 else f"{lines[0][:300]}…"
