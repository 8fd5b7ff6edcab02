"""A language model in float32 on the CPU in, the same with weights laid out for few rows out.

Decoding multiplies a handful of rows by every weight, which costs what reading the weights costs. oneDNN reads them
about a quarter faster in an order of its own, and whole prompts no slower. The plain weights are let go, so memory
does not grow. Rows, prompts and pictures are unknown here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 4  # for which oneDNN chooses the order; measured no slower from 2 to 2000 rows


def can_pack(model: Any) -> bool:
    """Whether all weights of a model are plain float32 in this machine's memory, and oneDNN is there."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
        and not any(hasattr(module, "_hf_hook") for module in model.modules())
        and all(type(module.act_fn).__name__ in ("SiLU", "SiLUActivation") for module in _mlps(model))
    )


def pack(model: Any) -> None:
    """Replace attention, MLPs and norms of the language model and the head; changed in place.

    Parameters
    ----------
    model : transformers.Qwen2_5_VLForConditionalGeneration
        For which `can_pack` holds.
    """
    for layer in model.model.language_model.layers:
        layer.self_attn = PackedAttention(layer.self_attn)
        layer.mlp = PackedMLP(layer.mlp)
        layer.input_layernorm = FusedNorm(layer.input_layernorm)
        layer.post_attention_layernorm = FusedNorm(layer.post_attention_layernorm)
    model.model.language_model.norm = FusedNorm(model.model.language_model.norm)


class PackedLinear(nn.Module):
    """One or several linear layers of the same input as one product.

    Parameters
    ----------
    linears : sequence of torch.nn.Linear
        Their outputs follow each other.
    """

    packed: Tensor
    bias: Tensor | None

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        super().__init__()
        weight = torch.cat([linear.weight.detach() for linear in linears])  # (out, in)
        biases = [linear.bias for linear in linears]
        self.register_buffer("packed", torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS), persistent=False)
        bias = None if biases[0] is None else torch.cat([each.detach() for each in biases])
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """States (…, in) to (…, out)."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(states, self.packed, self.bias, "none", [], "")
        return out


class PackedAttention(nn.Module):
    """Attention of a layer with one product for queries, keys and values."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv = PackedLinear([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out = PackedLinear([attention.o_proj])
        self._layer, self._head, self._scaling = attention.layer_idx, attention.head_dim, attention.scaling
        self._n_heads = attention.q_proj.out_features // self._head
        self._n_groups = attention.num_key_value_groups

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        cache: Any = None,
        past_key_values: Any = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """States (B, T, D) to states (B, T, D), as transformers' layers call it."""
        n_rows, length = hidden_states.shape[:2]
        heads = self.qkv(hidden_states).view(n_rows, length, -1, self._head).transpose(1, 2)  # (B, H + 2·G, T, d)
        n_turned = self._n_heads + self._n_heads // self._n_groups
        turned = _turn(heads[:, :n_turned], *position_embeddings)
        query, key, value = turned[:, : self._n_heads], turned[:, self._n_heads :], heads[:, n_turned:]
        held = cache if cache is not None else past_key_values
        if held is not None:
            key, value = held.update(key, value, self._layer)
        attended = self._attend(query, key, value, attention_mask)  # (B, H, T, d)
        return self.out(attended.transpose(1, 2).flatten(2)), None

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        length = query.shape[2]
        if length == 1:  # heads that share keys become rows of one product
            query = query.reshape(len(query), -1, self._n_groups, self._head)  # (B, G, H/G, d)
        attended = functional.scaled_dot_product_attention(
            query, key, value, mask, scale=self._scaling, is_causal=mask is None and length > 1, enable_gqa=length > 1
        )
        return attended.flatten(1, 2).unsqueeze(2) if length == 1 else attended


class PackedMLP(nn.Module):
    """The gated network of a layer with one product for both gates."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_up = PackedLinear([mlp.gate_proj, mlp.up_proj])
        self.down = PackedLinear([mlp.down_proj])

    def forward(self, states: Tensor) -> Tensor:
        """States (…, D) to states (…, D)."""
        gate, up = self.gate_up(states).chunk(2, dim=-1)
        return self.down(functional.silu(gate).mul_(up))  # type: ignore[no-any-return]


class FusedNorm(nn.Module):
    """Root mean square norm in one operation."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self._epsilon = norm.weight, norm.variance_epsilon

    def forward(self, states: Tensor) -> Tensor:
        """States (…, D), each of mean square one."""
        return functional.rms_norm(states, self.weight.shape, self.weight, self._epsilon)


def _turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of states (B, H, T, d); both halves of the angles (B, T, d) are equal."""
    half = cos.shape[-1] // 2
    cos, sin = cos[:, None, :, :half], sin[:, None, :, :half]
    first, second = states[..., :half], states[..., half:]
    turned = torch.empty_like(states)
    torch.mul(first, cos, out=turned[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=turned[..., half:]).addcmul_(first, sin)
    return turned


def _mlps(model: Any) -> list[Any]:
    return [layer.mlp for layer in model.model.language_model.layers]
