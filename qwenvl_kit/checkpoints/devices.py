"""Find the device that torch runs on; refuse one that does not exist."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from qwenvl_kit.checkpoints.capabilities import Device
from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from qwenvl_kit.options import DeviceMap, ModelOptions


def find_device(model: ModelOptions) -> Device:
    """Return the device of a model: by default the first visible GPU, else the CPU.

    Raises
    ------
    ConfigError
        ``rank`` is not the index of a visible GPU; the message lists them.
    """
    if model.device_map is not None:
        on_cuda = _maps_to_cuda(model.device_map)
        return Device(_name(model.device_map), on_cuda, flash_attention_version() if on_cuda else None)
    if model.rank is not None:
        _check_rank(model.rank)
    if not torch.cuda.is_available():
        return Device("cpu")
    return Device(f"cuda:{model.rank or 0}", is_cuda=True, flash_attention=flash_attention_version())


def flash_attention_version() -> str | None:
    """Return the version of the flash-attn package, None if it is not installed."""
    if importlib.util.find_spec("flash_attn") is None:
        return None
    try:
        return importlib.metadata.version("flash_attn")
    except importlib.metadata.PackageNotFoundError:
        return None


def visible_gpus() -> list[str]:
    """Return the GPUs that this process sees, such as ``cuda:0 NVIDIA H100``."""
    return [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]


def _check_rank(rank: int) -> None:
    visible = visible_gpus()
    if not visible:
        raise ConfigError(f"rank={rank} needs a GPU, and this process sees none. Pass rank=None to run on the CPU.")
    if rank >= len(visible):
        raise ConfigError(f"rank must be the index of a visible GPU; got {rank}. Visible are: {', '.join(visible)}.")


def _maps_to_cuda(device_map: DeviceMap) -> bool:
    if isinstance(device_map, Mapping):  # accelerate runs what it keeps on "cpu" or "disk" on the first GPU of the map
        return any(isinstance(place, int) or str(place).startswith("cuda") for place in device_map.values())
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.cuda.is_available()
    return device_map.startswith("cuda")


def _name(device_map: DeviceMap) -> str:
    if isinstance(device_map, Mapping):
        return "+".join(dict.fromkeys(f"cuda:{p}" if isinstance(p, int) else str(p) for p in device_map.values()))
    return device_map
