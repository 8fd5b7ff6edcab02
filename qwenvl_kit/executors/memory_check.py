"""Compare a model's weights with the memory of its device, before they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qwenvl_kit._memory import available_memory, in_words, total_memory
from qwenvl_kit._warnings import warn
from qwenvl_kit.checkpoints.footprint import file_bytes, loaded_bytes
from qwenvl_kit.errors import CostWarning, InsufficientMemory

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.checkpoint import Checkpoint
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.inference.backend import BackendSpec


def check_memory(spec: BackendSpec, *, note: Callable[[str], None] | None = None) -> None:
    """Warn of weights that exceed the free memory of their device, before they are loaded.

    It is an error where they exceed all memory: RAM and swap, within the limits of the process's cgroup, or a GPU's.
    Weights that stay in mapped files are a warning even then, because the system reads their pages again as it needs
    them; so are those of a device map, which may leave some on disk.

    Parameters
    ----------
    spec : BackendSpec
        The model.
    note : callable, optional
        Called with the warning, for the record.

    Raises
    ------
    InsufficientMemory
        Names the bytes, and the options that need fewer.
    """
    checkpoint, resolved = spec.checkpoint, spec.resolved
    if checkpoint is None or (memory := _memory(resolved.device)) is None:
        return
    free, total = memory
    weights = loaded_bytes(checkpoint, resolved)
    if weights <= free:
        return
    is_certain = weights > total and (resolved.device != "cpu" or not _stays_mapped(checkpoint, resolved))
    message = (
        f"The weights of {checkpoint.path} take {in_words(weights)} in {resolved.dtype}; {resolved.device} has "
        f"{in_words(total if is_certain else free)} {'in all' if is_certain else 'free'}. Use {_remedies(resolved)}."
    )
    if is_certain:
        raise InsufficientMemory(message)
    if note is not None:
        note(message)
    warn(message, CostWarning)


def _memory(device: str) -> tuple[int, int] | None:
    """Return the free and all memory of a device; None where it is unknown, as with device maps."""
    if device == "cpu":
        free, total = available_memory(), total_memory()
        return None if free is None or total is None else (free, total)
    index = device.removeprefix("cuda:")
    if not index.isdigit():
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.mem_get_info(int(index))
    return int(found[0]), int(found[1])


def _stays_mapped(checkpoint: Checkpoint, resolved: ResolvedConfig) -> bool:
    """Return whether weights are used as they are in their files, which only 16-bit ones on torch are."""
    weights = loaded_bytes(checkpoint, resolved)
    is_stored_so = abs(file_bytes(checkpoint, is_export=False) - weights) < weights // 100
    return resolved.provider is None and resolved.dtype != "float32" and is_stored_so


def _remedies(resolved: ResolvedConfig) -> str:
    remedies = [
        *(["dtype='bfloat16'"] if resolved.dtype == "float32" and resolved.provider is None else []),
        *(["device_map='auto'"] if resolved.device != "cpu" else []),
        "a smaller or quantised model",
    ]
    return ", or ".join(remedies)
