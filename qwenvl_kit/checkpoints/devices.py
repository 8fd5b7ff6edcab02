"""Find the device that torch runs on; refuse one that does not exist."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch

from qwenvl_kit.calibration import device_label
from qwenvl_kit.checkpoints.capabilities import NO_FLASH_ATTENTION, Device
from qwenvl_kit.checkpoints.library_errors import first_line
from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from qwenvl_kit.options import DeviceMap, ModelOptions


_FLASH_CAPABILITY = 8  # Ampere: https://github.com/Dao-AILab/flash-attention#nvidia-cuda-support


def find_device(model: ModelOptions) -> Device:
    """Return the device of a model: by default the first visible GPU, else the CPU.

    Raises
    ------
    ConfigError
        ``rank`` is not the index of a visible GPU; the message lists them.
    """
    if model.device_map is not None:
        on_cuda = _maps_to_cuda(model.device_map)
        name = _name(model.device_map)
        return _cuda_device(name, range(torch.cuda.device_count())) if on_cuda else Device(name)
    if model.rank is not None:
        _check_rank(model.rank)
    if not torch.cuda.is_available():
        return Device("cpu")
    return _cuda_device(f"cuda:{model.rank or 0}", [model.rank or 0])


def visible_gpus() -> list[str]:
    """Return the GPUs that this process sees, such as ``cuda:0 NVIDIA H100``."""
    return [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]


def hardware_label(device: str, threads: int | None = None) -> str:
    """Return the hardware behind a resolved device, as calibrations name it; see `calibration.device_label`."""
    index = next((int(part[5:]) for part in device.split("+") if part.startswith("cuda:")), 0)
    is_cuda = device not in ("cpu", "disk") and torch.cuda.is_available()
    return device_label(device, gpu_name=torch.cuda.get_device_name(index) if is_cuda else None, threads=threads)


def _cuda_device(name: str, indices: Iterable[int]) -> Device:
    """Return a device on CUDA, with flash-attention where the package imports and all its GPUs support it."""
    fault = _flash_fault(indices)
    if fault is not None:
        return Device(name, is_cuda=True, flash_fault=fault)
    return Device(name, is_cuda=True, flash_attention=importlib.metadata.version("flash_attn"))


def _flash_fault(indices: Iterable[int]) -> str | None:
    if importlib.util.find_spec("flash_attn") is None:
        return NO_FLASH_ATTENTION
    try:
        importlib.import_module("flash_attn")
    except Exception as error:  # noqa: BLE001  # a wheel for another torch raises whatever its loader raises
        return f"flash-attn does not import ({type(error).__name__}: {first_line(error)}); reinstall it for this torch"
    for index in indices:
        major, minor = torch.cuda.get_device_capability(index)
        if major < _FLASH_CAPABILITY:
            return f"cuda:{index} has compute capability {major}.{minor}; flash-attn requires {_FLASH_CAPABILITY}.0"
    return None


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
