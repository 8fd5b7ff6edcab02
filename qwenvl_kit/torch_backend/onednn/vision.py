"""Vision tower of Qwen2.5-VL with fewer and larger operations, and the same numbers."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from qwenvl_kit.inference.cancellation import advance
from qwenvl_kit.torch_backend.onednn.linear import (
    OneDNNLinear,
    OneDNNMLP,
    OneDNNRMSNorm,
    apply_rotary,
    interleave_rotary,
    rotary_as_complex,
    select_outputs,
)

if TYPE_CHECKING:
    from torch import Tensor

_SILU = ("SiLU", "SiLUActivation")  # torch's and transformers' name for it


def fuse_vision(visual: Any) -> None:
    """Replace parts of a vision tower in place; weights are shared, not copied.

    Parameters
    ----------
    visual : transformers.Qwen2_5_VisionTransformerPretrainedModel
        With ``sdpa``, and without accelerate's hooks.
    """
    visual.patch_embed = LinearPatches(visual.patch_embed)
    for block in visual.blocks:
        block.attn = WindowedAttention(block.attn)
        block.mlp = InPlaceMLP(block.mlp)


def prepack_vision(visual: Any) -> None:
    """Replace the linear layers of a vision tower in place by prepacked ones; plain weights are freed.

    Parameters
    ----------
    visual : transformers.Qwen2_5_VisionTransformerPretrainedModel
        Of a model for which `can_prepack` holds.
    """
    visual.patch_embed = OneDNNLinear([visual.patch_embed.proj])
    for at, block in enumerate(visual.blocks):
        advance()
        visual.blocks[at] = OneDNNBlock(block)
    merger = visual.merger
    merger.ln_q = OneDNNRMSNorm(merger.ln_q)
    merger.mlp = nn.Sequential(OneDNNLinear([merger.mlp[0]]), merger.mlp[1], OneDNNLinear([merger.mlp[2]]))


class LinearPatches(nn.Module):
    """Patch embedding as a matrix product: its convolution has a stride of its size."""

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        self.proj = convolution.proj

    def forward(self, patches: Tensor) -> Tensor:
        """Return states (P, D) of patches (P, C·T·p·p)."""
        weight = self.proj.weight.flatten(1)  # (D, C·T·p·p)
        return functional.linear(patches.to(weight.dtype), weight)


class WindowedAttention(nn.Module):
    """Attention within windows, for all windows of one length at once."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self._n_heads, self._scaling = attention.num_heads, attention.scaling

    def forward(
        self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> Tensor:
        """Return states (P, D); the windows' borders are `cu_seqlens`."""
        n_patches = len(hidden_states)
        qkv = self.qkv(hidden_states).view(n_patches, 3, self._n_heads, -1)  # (P, 3, H, d)
        rotated = _apply_rotary(qkv[:, :2], *position_embeddings)
        attended = _attend_within(rotated[:, 0], rotated[:, 1], qkv[:, 2], cu_seqlens, self._scaling)
        return self.proj(attended)  # type: ignore[no-any-return]


class OneDNNBlock(nn.Module):
    """Vision block: windowed attention and gated network, each with its norm and residual."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention = block.attn
        self._n_heads, self._scaling = attention.num_heads, attention.scaling
        width = attention.qkv.in_features
        parts = torch.arange(3 * width).view(3, width)
        query, key, value = (select_outputs(attention.qkv, outputs) for outputs in parts)
        query, key = (interleave_rotary(each, width // self._n_heads) for each in (query, key))
        self.first_norm, self.second_norm = OneDNNRMSNorm(block.norm1), OneDNNRMSNorm(block.norm2)
        self.qkv, self.out = OneDNNLinear([query, key, value]), OneDNNLinear([attention.proj])
        self.mlp = OneDNNMLP(block.mlp)

    def forward(
        self, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: tuple[Tensor, Tensor], **_: Any
    ) -> Tensor:
        """Return states (P, D), as transformers' loop calls a block."""
        qkv = self.qkv(self.first_norm(hidden_states)).view(len(hidden_states), 3, self._n_heads, -1)  # (P, 3, H, d)
        rotated = apply_rotary(qkv[:, :2], rotary_as_complex(*position_embeddings)[:, None, None])
        attended = _attend_within(rotated[:, 0], rotated[:, 1], qkv[:, 2], cu_seqlens, self._scaling)
        states = self.out.plus(attended, hidden_states)
        return self.mlp(self.second_norm(states), states)  # type: ignore[no-any-return]


class InPlaceMLP(nn.Module):
    """Gated network of a block that does not copy its large intermediate states."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn = nn.SiLU(inplace=True) if type(mlp.act_fn).__name__ in _SILU else mlp.act_fn

    def forward(self, states: Tensor) -> Tensor:
        """Return states (…, D)."""
        gate = self.act_fn(self.gate_proj(states))
        return self.down_proj(gate.mul_(self.up_proj(states)))  # type: ignore[no-any-return]


def _attend_within(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, scaling: float) -> Tensor:
    """Attend with heads (P, H, d) within windows that end at `borders`; return states (P, H · d)."""
    lengths = borders.diff().tolist()
    if len(set(lengths)) == 1:
        return _attend(query, key, value, lengths[0], scaling)
    attended = torch.empty(len(value), value.shape[1] * value.shape[2], dtype=value.dtype, device=value.device)
    for length, places in _by_length(lengths, value.device).items():
        attended[places] = _attend(query[places], key[places], value[places], length, scaling)
    return attended


def _attend(query: Tensor, key: Tensor, value: Tensor, length: int, scaling: float) -> Tensor:
    """Attend within consecutive windows of one length."""
    shape = (-1, length, *query.shape[1:])
    query, key, value = (each.reshape(shape).transpose(1, 2) for each in (query, key, value))  # (W, H, l, d)
    attended = functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    return attended.transpose(1, 2).flatten(0, 1).flatten(1)  # (P, H · d)


def _apply_rotary(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions in float32, like transformers; both halves of the angles are equal."""
    half = cos.shape[-1] // 2
    cos, sin = (angles[:, None, None, :half].float() for angles in (cos, sin))  # (P, 1, 1, d/2)
    first, second = states[..., :half].float(), states[..., half:].float()  # (P, 2, H, d/2)
    rotated = torch.empty(states.shape, dtype=torch.float32, device=states.device)
    torch.mul(first, cos, out=rotated[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=rotated[..., half:]).addcmul_(first, sin)
    return rotated.to(states.dtype)


def _by_length(lengths: list[int], device: torch.device) -> dict[int, Tensor]:
    """Return indices of the patches in windows of each length."""
    places: dict[int, list[Tensor]] = defaultdict(list)
    start = 0
    for length in lengths:
        places[length].append(torch.arange(start, start + length))
        start += length
    return {length: torch.cat(some).to(device) for length, some in places.items()}
