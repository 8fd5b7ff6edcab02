"""Vision tower of Qwen2.5-VL with fewer and larger operations, and the same numbers.

Modules and weights stay where they are; only their forwards are replaced. So accelerate's hooks keep working, which
move weights and inputs between devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from qwenvl_kit.torch_backend.row_blocks import by_rows
from qwenvl_kit.torch_backend.windows import Windows, has_varlen_kernel

if TYPE_CHECKING:
    from torch import Tensor

_SILU = ("SiLU", "SiLUActivation")  # torch's and transformers' name for it


def fuse_vision(visual: Any) -> None:
    """Replace forwards of a vision tower in place, whatever its attention.

    Parameters
    ----------
    visual : transformers.Qwen2_5_VisionTransformerPretrainedModel
        Also with accelerate's hooks.
    """
    windows = Windows(visual)
    _replace_forward(visual.patch_embed.proj, _project_patches)
    for at, block in enumerate(visual.blocks):
        is_full = at in visual.config.fullatt_block_indexes
        _replace_forward(block.attn, functools.partial(_attention, windows=windows, is_full=is_full))
        _replace_forward(block.mlp, _gated_network)


def uses_flash_kernel(visual: Any) -> bool:
    """Return whether `attend_varlen` computes the attention of all blocks that are on a GPU."""
    head_dim = visual.config.hidden_size // visual.config.num_heads
    devices = {weight.device for weight in visual.parameters() if weight.device.type == "cuda"}
    return bool(devices) and all(has_varlen_kernel(device, visual.dtype, head_dim) for device in devices)


def _replace_forward(module: Any, forward: Callable[..., Tensor]) -> None:
    """Make `forward` that of a module, within accelerate's hook where it has one.

    https://github.com/huggingface/accelerate/blob/v1.15.0/src/accelerate/hooks.py#L126: the hook calls `_old_forward`.
    """
    name = "_old_forward" if hasattr(module, "_hf_hook") else "forward"
    setattr(module, name, functools.partial(forward, module))


def _project_patches(convolution: Any, patches: Tensor) -> Tensor:
    """Return states (P, D) of patches (P, C, T, p, p): a convolution with a stride of its size is a matrix product.

    cuDNN took 3.7 s a call for the convolution on an H100: https://github.com/sgl-project/sglang-omni/pull/539.
    """
    return functional.linear(patches.flatten(1), convolution.weight.flatten(1), convolution.bias)


def _attention(
    attention: Any,
    hidden_states: Tensor,
    *_: Any,
    windows: Windows,
    is_full: bool,
    position_embeddings: tuple[Tensor, Tensor],
    **__: Any,
) -> Tensor:
    """Return states (P, D), attended within the windows of the pass."""
    query, key, value = by_rows(functools.partial(_heads, attention), hidden_states, *position_embeddings)
    attended = windows.attend(query, key, value, attention.scaling, is_full=is_full)
    states: Tensor = by_rows(attention.proj, attended)
    return states


def _heads(attention: Any, states: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """Return queries, keys and values (P, H, d), rotated by angles (P, d)."""
    qkv = attention.qkv(states).view(len(states), 3, attention.num_heads, -1)  # (P, 3, H, d)
    query, key = _apply_rotary(qkv[:, :2], cos, sin).unbind(1)
    return query, key, qkv[:, 2]


def _gated_network(mlp: Any, states: Tensor) -> Tensor:
    """Return states (P, D)."""
    return by_rows(functools.partial(_gated_rows, mlp), states)


def _gated_rows(mlp: Any, states: Tensor) -> Tensor:
    """Return states (P, D); the large intermediate states are not copied."""
    gate = mlp.gate_proj(states)
    gate = functional.silu(gate, inplace=True) if type(mlp.act_fn).__name__ in _SILU else mlp.act_fn(gate)
    return mlp.down_proj(gate.mul_(mlp.up_proj(states)))  # type: ignore[no-any-return]


def _apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions in float32, like transformers; both halves of the angles are equal."""
    half = cos.shape[-1] // 2
    cos, sin = (angles[:, None, None, :half].float() for angles in (cos, sin))  # (P, 1, 1, d/2)
    first, second = states[..., :half].float(), states[..., half:].float()  # (P, 2, H, d/2)
    rotated = torch.empty(states.shape, dtype=torch.float32, device=states.device)
    torch.mul(first, cos, out=rotated[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=rotated[..., half:]).addcmul_(first, sin)
    return rotated.to(states.dtype)
