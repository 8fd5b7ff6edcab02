"""Turn errors of libraries about a checkpoint into errors that name its folder and a fix."""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections.abc import Iterator
from pathlib import Path

from qwenvl_kit.errors import CheckpointError, QwenVLError

_OOM_MESSAGES = (
    "can't allocate memory",  # torch on the CPU
    "CUDA error: out of memory",  # outside of torch's allocator
    "cudaErrorMemoryAllocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",  # its workspace found no place
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
    "Failed to allocate memory",  # ONNX Runtime
    "bad allocation",  # C++ anywhere
    "std::bad_alloc",
)
_LOST_MESSAGES = (  # after which every call on the GPU fails until the process ends
    "an illegal memory access was encountered",
    "device-side assert triggered",
    "misaligned address",
    "unspecified launch failure",
    "an illegal instruction was encountered",
    "invalid program counter",
    "operation not supported on global/shared address space",
    "hardware stack error",
    "the launch timed out and was terminated",
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
    "GPU has fallen off the bus",
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
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM  # of mapping a file
    if any(message in str(error) for message in _OOM_MESSAGES):
        return True
    # Memory that runs out while a CUDA graph is recorded ends the recording, which raises an error of its own.
    before = error.__cause__ or error.__context__
    return "captur" in str(error) and before is not None and is_out_of_memory(before)


def is_device_lost(error: BaseException) -> bool:
    """Return whether a GPU refuses all further work of this process.

    Examples
    --------
    >>> is_device_lost(RuntimeError("CUDA error: device-side assert triggered"))
    True
    """
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _LOST_MESSAGES)


def release_frames(error: BaseException) -> None:
    """Clear the local variables of an error's finished frames, and of the errors before it.

    An error that is kept, as IPython keeps the last one, would keep their tensors: half a model, where loading failed.
    """
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        todo += [one.__cause__, one.__context__]


def first_line(error: object) -> str:
    """Return the first line of an error, at most 300 characters of it."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if len(lines[0]) <= 300 else f"{lines[0][:300]}…"
