"""Attention of a decode step on torch's own flash kernel, over the slots of the KV cache as they are.

The kernel reads the tokens that each slot holds and no others. It needs no mask, no copy and no number from the CPU.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

_CAPABILITY = (8, 0)  # Ampere; torch's kernel refuses older GPUs
_MAX_HEAD_DIM = 256  # of the kernel, in multiples of 8
_TOLERANCE = 2e-2  # of attended values near 1, in 16 bits


def slot_index(lengths: Tensor, capacity: int) -> Tensor:
    """Return what the kernel needs to know of a step's rows.

    Parameters
    ----------
    lengths : int64 Tensor (B,)
        Tokens in each of the first slots, before the step.
    capacity : int
        Tokens that a slot has room for.

    Returns
    -------
    int32 Tensor (3, B + 1)
        Where each row's queries begin, where its slot begins, and its tokens after the step.
    """
    rows = torch.arange(len(lengths) + 1, device=lengths.device)
    return torch.stack([rows, rows * capacity, functional.pad(lengths + 1, (0, 1))]).int()


def attend_slots(query: Tensor, key: Tensor, value: Tensor, index: Tensor, scaling: float) -> Tensor:
    """Attend from one token of each row to all tokens of its slot.

    Parameters
    ----------
    query : Tensor (B, H, 1, d)
        In 16 bits, on CUDA.
    key, value : Tensor (B, G, capacity, d)
        The first slots of a cache whose memory has the order (slots, capacity, G, d).
    index : int32 Tensor (3, B + 1)
        Of `slot_index`.
    scaling : float
        Factor of the products.

    Returns
    -------
    Tensor (B, 1, H, d)
    """
    n_rows, n_groups, capacity, head_dim = key.shape
    key, value = (part.transpose(1, 2).view(-1, n_groups, head_dim) for part in (key, value))  # a view is no copy
    attended: Tensor = torch.ops.aten._flash_attention_forward(
        query[:, :, 0],
        key,
        value,
        index[0],
        index[1],
        1,
        capacity,
        0.0,
        False,
        False,
        scale=scaling,
        seqused_k=index[2, :n_rows],
    )[0]
    return attended[:, None]


def kernel_fault(text: Any) -> str | None:
    """Return why `attend_slots` cannot compute a language model's steps; None where it can.

    Parameters
    ----------
    text : transformers.Qwen2_5_VLTextModel
    """
    devices = {weight.device for weight in text.parameters()}
    if any(device.type != "cuda" for device in devices):
        return "layers are not on CUDA"
    if text.has_sliding_layers:
        return "layers have sliding windows"
    config = text.config
    head_dim = config.hidden_size // config.num_attention_heads
    shape = config.num_attention_heads, config.num_key_value_heads, head_dim
    faults = (_fault(device, text.dtype, *shape) for device in sorted(devices, key=str))
    return next((fault for fault in faults if fault is not None), None)


@functools.cache
def _fault(device: torch.device, dtype: torch.dtype, n_heads: int, n_groups: int, head_dim: int) -> str | None:
    """Return why the kernel cannot be used on a device: tried once, and compared with SDPA."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"{dtype} has no flash kernel"
    if head_dim % 8 or head_dim > _MAX_HEAD_DIM:
        return f"heads of {head_dim} have no flash kernel"
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        return f"{device} has compute capability {capability[0]}.{capability[1]}, and the flash kernel requires 8.0"
    try:
        error = _max_error(device, dtype, n_heads, n_groups, head_dim)
    except (RuntimeError, TypeError, AttributeError) as refusal:  # built without the kernel, or with another schema
        return f"torch {torch.__version__} refuses the flash kernel ({type(refusal).__name__})"
    return None if error < _TOLERANCE else f"the flash kernel differs from SDPA by {error:.3g}"


@torch.inference_mode()
def _max_error(device: torch.device, dtype: torch.dtype, n_heads: int, n_groups: int, head_dim: int) -> float:
    """Return the largest difference between the kernel and SDPA, over slots that hold 1, 37, 200 and 256 tokens."""
    lengths, capacity = torch.tensor([0, 36, 199, 255], device=device), 256
    draw = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device).to(dtype)

    query = random(4, n_heads, 1, head_dim)
    key, value = (random(5, capacity, n_groups, head_dim).transpose(1, 2)[:4] for _ in range(2))
    scaling = head_dim**-0.5
    ours = attend_slots(query, key, value, slot_index(lengths, capacity), scaling).float()
    mask = (torch.arange(capacity, device=device) <= lengths[:, None])[:, None, None]  # (B, 1, 1, L)
    groups = query.reshape(4, n_groups, -1, head_dim).float()
    exact = functional.scaled_dot_product_attention(groups, key.float(), value.float(), mask, scale=scaling)
    return (ours - exact.reshape(ours.shape)).abs().max().nan_to_num(torch.inf).item()
