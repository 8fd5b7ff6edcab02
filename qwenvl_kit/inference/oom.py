"""Recognise that memory ran out, and free what can be freed."""

from __future__ import annotations

import gc

import torch

from qwenvl_kit.checkpoints.library_errors import is_device_lost, is_out_of_memory

__all__ = ["free_memory", "is_device_lost", "is_out_of_memory"]


def free_memory() -> None:
    """Give unused memory back; call it outside of except clauses, which keep a failed forward's tensors alive."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
