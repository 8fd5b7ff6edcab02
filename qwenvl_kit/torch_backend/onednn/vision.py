"""Vision tower of Qwen2.5-VL in float32 on the CPU, with prepacked linear layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

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
from qwenvl_kit.torch_backend.row_blocks import by_rows
from qwenvl_kit.torch_backend.windows import Windows

if TYPE_CHECKING:
    from torch import Tensor


def prepack_vision(visual: Any) -> None:
    """Replace the linear layers of a vision tower in place by prepacked ones; plain weights are freed.

    Parameters
    ----------
    visual : transformers.Qwen2_5_VisionTransformerPretrainedModel
        Of a model for which `can_prepack` holds.
    """
    visual.patch_embed = OneDNNLinear([visual.patch_embed.proj])
    windows = Windows(visual)
    for at, block in enumerate(visual.blocks):
        advance()
        visual.blocks[at] = OneDNNBlock(block, windows, is_full=at in visual.config.fullatt_block_indexes)
    merger = visual.merger
    merger.ln_q = OneDNNRMSNorm(merger.ln_q)
    merger.mlp = nn.Sequential(OneDNNLinear([merger.mlp[0]]), merger.mlp[1], OneDNNLinear([merger.mlp[2]]))


class OneDNNBlock(nn.Module):
    """Vision block: windowed attention and gated network, each with its norm and residual."""

    def __init__(self, block: Any, windows: Windows, *, is_full: bool) -> None:
        super().__init__()
        self._windows, self._is_full = windows, is_full
        attention = block.attn
        self._n_heads, self._scaling = attention.num_heads, attention.scaling
        width = attention.qkv.in_features
        parts = torch.arange(3 * width).view(3, width)
        query, key, value = (select_outputs(attention.qkv, outputs) for outputs in parts)
        query, key = (interleave_rotary(each, width // self._n_heads) for each in (query, key))
        self.first_norm, self.second_norm = OneDNNRMSNorm(block.norm1), OneDNNRMSNorm(block.norm2)
        self.qkv, self.out = OneDNNLinear([query, key, value]), OneDNNLinear([attention.proj])
        self.mlp = OneDNNMLP(block.mlp)

    def forward(self, hidden_states: Tensor, *_: Any, position_embeddings: tuple[Tensor, Tensor], **__: Any) -> Tensor:
        """Return states (P, D), as transformers' loop calls a block."""
        query, key, value = by_rows(self._heads, hidden_states, rotary_as_complex(*position_embeddings))
        attended = self._windows.attend(query, key, value, self._scaling, is_full=self._is_full)
        states = by_rows(self.out.plus, attended, hidden_states)
        return by_rows(self._feed_forward, states)

    def _heads(self, states: Tensor, rotary: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values (P, H, d), rotated by complex numbers (P, d/2)."""
        qkv = self.qkv(self.first_norm(states)).view(len(states), 3, self._n_heads, -1)  # (P, 3, H, d)
        query, key = apply_rotary(qkv[:, :2], rotary[:, None, None]).unbind(1)
        return query, key, qkv[:, 2]

    def _feed_forward(self, states: Tensor) -> Tensor:
        return self.mlp(self.second_norm(states), states)  # type: ignore[no-any-return]
