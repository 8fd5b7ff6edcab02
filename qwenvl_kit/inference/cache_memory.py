"""Measure how many tokens of keys and values still fit in memory, on the devices that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qwenvl_kit._memory import RAM_SHARE, available_memory

# What the passes need beside the cache, and the driver for its kernels: of a GPU's free memory, of all its memory.
_CUDA_RESERVE = (1.5e9, 0.05)


@dataclass(frozen=True, slots=True)
class CacheMemory:
    """The memory of one model's KV cache.

    Attributes
    ----------
    bytes_per_token : int
        Keys and values of one token in all layers.
    layers : mapping of torch.device to int
        How many layers have their keys and values on each device.
    """

    bytes_per_token: int
    layers: Mapping[torch.device, int]

    def free_tokens(self, *, reserve: bool) -> int | None:
        """Return for how many more tokens there is room; None where the system does not say.

        Parameters
        ----------
        reserve : bool
            Keep some memory for the model's passes and for other programs.
        """
        tokens: list[float] = []
        for device, n_layers in self.layers.items():
            free = _free_bytes(device, reserve=reserve)
            if free is None:
                return None
            tokens.append(free / (self.bytes_per_token * n_layers / sum(self.layers.values())))
        return max(0, int(min(tokens)))


def _free_bytes(device: torch.device, *, reserve: bool) -> float | None:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # torch keeps what it freed: https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused - reserve * (_CUDA_RESERVE[0] + _CUDA_RESERVE[1] * total)
    if device.type != "cpu":
        return None
    available = available_memory()
    return None if available is None else available * (RAM_SHARE if reserve else 1.0)
