"""Copies from the CPU to a model's device."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, to a GPU from pinned memory, so that the CPU goes on meanwhile.

    A copy from other memory waits until all work before it is done.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
