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

    def max_tokens(self, n_held: int, *, reserve: bool) -> int | None:
        """Return the most tokens that the cache may have; None where the system does not say what is free.

        Parameters
        ----------
        n_held : int
            The tokens that it has now, whose memory is not free.
        reserve : bool
            Keep some memory for the model's passes and for other programs.
        """
        tokens: list[float] = []
        for device, n_layers in self.layers.items():
            per_token = self.bytes_per_token * n_layers / sum(self.layers.values())
            n_bytes = _usable_bytes(device, n_held * per_token, reserve=reserve)
            if n_bytes is None:
                return None
            tokens.append(n_bytes / per_token)
        return max(0, int(min(tokens)))


def after_reserve(device: str, free: float) -> float:
    """Return what a cache may take of the bytes that are free on a device where no number of rows was asked for."""
    if not device.removeprefix("cuda:").isdigit():  # the CPU, or the places of a device map
        return RAM_SHARE * free
    total = torch.cuda.mem_get_info(torch.device(device))[1]
    return free - _CUDA_RESERVE[0] - _CUDA_RESERVE[1] * total


def _usable_bytes(device: torch.device, held: float, *, reserve: bool) -> float | None:
    """Return the bytes of a device that are free or held by the cache, less the reserve."""
    if device.type == "cuda":
        # torch keeps what it freed: https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused + held
    elif device.type == "cpu" and (available := available_memory()) is not None:
        free = available + held
    else:
        return None
    return after_reserve(str(device), free) if reserve else free
