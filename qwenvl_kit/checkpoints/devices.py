"""Find the device that torch runs on; refuse one that does not exist."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from qwenvl_kit.calibration import device_label
from qwenvl_kit.checkpoints.capabilities import NO_FLASH_ATTENTION, Device
from qwenvl_kit.checkpoints.library_errors import first_line
from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from qwenvl_kit.options import DeviceMap, ModelOptions


_FLASH_CAPABILITY = (8, 0)  # Ampere: https://github.com/Dao-AILab/flash-attention#nvidia-cuda-support
_BFLOAT16_CAPABILITY = (8, 0)  # older GPUs have no tensor cores for it, and no attention without a matrix of all pairs
_DRIVERS = {12: 525, 13: 580}  # https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
_SPREADING = ("auto", "balanced", "balanced_low_0")  # over all visible GPUs, also where one is enough
_NVIDIA = Path("/dev/nvidia0")


def find_device(model: ModelOptions) -> Device:
    """Return the device of a model: by default the first visible GPU, else the CPU.

    Raises
    ------
    ConfigError
        ``rank`` is not the index of a visible GPU; the message lists them.
    """
    places = model.device_map
    if model.rank is not None and places is None:
        _check_rank(model.rank)
    if places is not None and _maps_to_cuda(places):
        device = _cuda_device(_name(places), _indices(places), model.dtype)
        return replace(device, spans=_spans(places))
    if places is None and torch.cuda.is_available():
        return _cuda_device(f"cuda:{model.rank or 0}", [model.rank or 0], model.dtype)
    device = Device("cpu") if places is None else Device(_name(places), spans=_spans(places))
    fault = unusable_gpu() if places is None or places in (*_SPREADING, "sequential") else None
    return device if fault is None else replace(device, advice=(f"{fault} The model runs on the CPU.",))


def unusable_gpu() -> str | None:
    """Return why torch cannot use the GPU that this machine has, with the remedy; None where nothing is wrong."""
    if torch.version.cuda is None or torch.cuda.is_available() or not _NVIDIA.exists():
        return None
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):  # hidden on purpose
        return None
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        cause = "no device is visible"
    except (RuntimeError, AssertionError) as error:
        cause = first_line(error).rstrip(".")
    driver = _DRIVERS.get(int(torch.version.cuda.partition(".")[0]))
    needs = "" if driver is None else f" CUDA {torch.version.cuda} needs driver {driver} or newer."
    return (
        f"This machine has an NVIDIA GPU, but torch {torch.__version__} cannot use it ({cause}).{needs} Update the "
        "driver, or install a torch built for an older CUDA: https://pytorch.org/get-started/locally/."
    )


def visible_gpus() -> list[str]:
    """Return the GPUs that this process sees, such as ``cuda:0 NVIDIA H100``."""
    return [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]


def hardware_label(device: str, threads: int | None = None) -> str:
    """Return the hardware behind a resolved device, as calibrations name it; see `calibration.device_label`."""
    index = next((int(part[5:]) for part in device.split("+") if part.startswith("cuda:")), 0)
    is_cuda = device not in ("cpu", "disk") and torch.cuda.is_available()
    return device_label(device, gpu_name=torch.cuda.get_device_name(index) if is_cuda else None, threads=threads)


def _cuda_device(name: str, indices: Sequence[int], dtype: str) -> Device:
    """Return a device on CUDA, with flash-attention where the package imports and all its GPUs support it."""
    visible = [index for index in indices if index < torch.cuda.device_count()]
    if not visible:  # loading raises, and names the place
        return Device(name, is_cuda=True)
    oldest = min(visible, key=torch.cuda.get_device_capability)
    capability = torch.cuda.get_device_capability(oldest)
    advice = _bfloat16_advice(oldest, capability) if dtype == "bfloat16" else ()
    fault = _flash_fault(oldest, capability)
    device = Device(name, is_cuda=True, capability=capability, advice=advice)
    if fault is not None:
        return replace(device, flash_fault=fault)
    return replace(device, flash_attention=importlib.metadata.version("flash_attn"))


def _bfloat16_advice(index: int, capability: tuple[int, int]) -> tuple[str, ...]:
    if capability >= _BFLOAT16_CAPABILITY:
        return ()
    return (
        f"dtype='bfloat16' is slow on cuda:{index} (compute capability {_dotted(capability)}), and large images take "
        f"much memory: its units for bfloat16 begin with {_dotted(_BFLOAT16_CAPABILITY)}. Pass dtype='float16'.",
    )


def _flash_fault(index: int, capability: tuple[int, int]) -> str | None:
    if importlib.util.find_spec("flash_attn") is None:
        return NO_FLASH_ATTENTION
    try:
        importlib.import_module("flash_attn")
    except Exception as error:  # noqa: BLE001  # a wheel for another torch raises whatever its loader raises
        return f"flash-attn does not import ({type(error).__name__}: {first_line(error)}); reinstall it for this torch"
    if capability < _FLASH_CAPABILITY:
        return (
            f"cuda:{index} has compute capability {_dotted(capability)}; flash-attn requires "
            f"{_dotted(_FLASH_CAPABILITY)}"
        )
    return None


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _check_rank(rank: int) -> None:
    visible = visible_gpus()
    if not visible:
        why = unusable_gpu() or "This process sees none."
        raise ConfigError(f"rank={rank} needs a GPU. {why} Pass rank=None to run on the CPU.")
    if rank >= len(visible):
        raise ConfigError(f"rank must be the index of a visible GPU; got {rank}. Visible are: {', '.join(visible)}.")


def _maps_to_cuda(device_map: DeviceMap) -> bool:
    if isinstance(device_map, Mapping):  # accelerate runs what it keeps on "cpu" or "disk" on the first GPU of the map
        return any(isinstance(place, int) or str(place).startswith("cuda") for place in device_map.values())
    if device_map in (*_SPREADING, "sequential"):
        return torch.cuda.is_available()
    return device_map.startswith("cuda")


def _indices(device_map: DeviceMap) -> list[int]:
    """Return the indices of the GPUs of a device map that is on CUDA."""
    if isinstance(device_map, Mapping):
        return sorted({_index(place) for place in device_map.values() if str(place) not in ("cpu", "disk")})
    if device_map.startswith("cuda"):
        return [_index(device_map)]
    return list(range(torch.cuda.device_count()))


def _index(place: int | str) -> int:
    return place if isinstance(place, int) else int(place.partition(":")[2] or 0)


def _spans(device_map: DeviceMap) -> bool:
    """Return whether a device map places modules on several devices; where only loading tells, whether it may not."""
    if isinstance(device_map, Mapping):
        return len({f"cuda:{place}" if isinstance(place, int) else str(place) for place in device_map.values()}) > 1
    return device_map in _SPREADING and torch.cuda.device_count() > 1


def _name(device_map: DeviceMap) -> str:
    if isinstance(device_map, Mapping):
        return "+".join(dict.fromkeys(f"cuda:{p}" if isinstance(p, int) else str(p) for p in device_map.values()))
    return device_map
