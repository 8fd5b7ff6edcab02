"""Whether an exception means that memory ran out, and how to free what can be freed; no row is known here."""

from __future__ import annotations

import gc

import torch

_SAYINGS = (
    "can't allocate memory",  # torch on the CPU
    "Failed to allocate memory",  # ONNX Runtime
    "bad allocation",  # C++ anywhere
    "std::bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may succeed where this was raised.

    Examples
    --------
    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shape mismatch"))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(saying in str(error) for saying in _SAYINGS)


def free_memory() -> None:
    """Give unused memory back; call it outside of except clauses, which keep a failed forward's tensors alive."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
