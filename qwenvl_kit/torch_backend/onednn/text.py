"""Language model of Qwen2.5-VL on oneDNN's prepacked weights.

transformers' ``generate`` can run the changed model too. `OneDNNText` is faster: its last layer computes only the
tokens whose logits are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
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
)

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.torch_backend.attention import Watch


def prepack_text(text: Any) -> None:
    """Replace the layers and the last norm of a language model in place.

    Parameters
    ----------
    text : transformers.Qwen2_5_VLTextModel
        Of a model for which `can_prepack` holds.
    """
    for at, layer in enumerate(text.layers):
        advance()
        text.layers[at] = OneDNNLayer(layer)
    text.norm = OneDNNRMSNorm(text.norm)


class OneDNNText:
    """Compute hidden states of a prepacked language model.

    Parameters
    ----------
    text : transformers.Qwen2_5_VLTextModel
        After `prepack_text`.
    """

    def __init__(self, text: Any) -> None:
        self._text = text

    def __call__(
        self, embedded: Tensor, positions: Tensor, masks: Mapping[str, Tensor | None], cache: Any, last: Tensor | None
    ) -> Tensor:
        """Return hidden states (B, D) of token `last` (B,) of each row, or of its only one.

        The last layer computes queries only for `last`; other tokens need only their keys and values.
        """
        states = embedded
        rotary = rotary_as_complex(*self._text.rotary_emb(embedded, positions))[:, None]  # (B, 1, T, d/2)
        *layers, top = zip(self._text.layers, self._text.config.layer_types, strict=True)
        for layer, kind in layers:
            advance()
            states = layer.run(states, rotary, masks[kind], cache)
        layer, kind = top
        advance()
        states = layer.run(states, rotary, masks[kind], cache, last)
        return self._text.norm(states[:, 0])  # type: ignore[no-any-return]

    def all_states(
        self,
        embedded: Tensor,
        positions: Tensor,
        masks: Mapping[str, Tensor | None],
        cache: Any,
        watch: Watch | None = None,
    ) -> Tensor:
        """Return hidden states (B, T, D) of all tokens."""
        states = embedded
        rotary = rotary_as_complex(*self._text.rotary_emb(embedded, positions))[:, None]  # (B, 1, T, d/2)
        for layer, kind in zip(self._text.layers, self._text.config.layer_types, strict=True):
            advance()
            states = layer.run(states, rotary, masks[kind], cache, watch=watch)
        return self._text.norm(states)  # type: ignore[no-any-return]


class OneDNNLayer(nn.Module):
    """Decoder layer: attention and gated network, each with its norm and residual.

    Parameters
    ----------
    layer : transformers.Qwen2_5_VLDecoderLayer
        The layer to replace.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention = layer.self_attn
        self._layer, self._head_dim, self._scaling = attention.layer_idx, attention.head_dim, attention.scaling
        self._n_groups = attention.num_key_value_groups
        self.first_norm, self.second_norm = (
            OneDNNRMSNorm(layer.input_layernorm),
            OneDNNRMSNorm(layer.post_attention_layernorm),
        )
        self.query = OneDNNLinear([interleave_rotary(attention.q_proj, self._head_dim)])
        self.key_value = OneDNNLinear([interleave_rotary(attention.k_proj, self._head_dim), attention.v_proj])
        self.out = OneDNNLinear([attention.o_proj])
        self.mlp = OneDNNMLP(layer.mlp)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        cache: Any = None,
        past_key_values: Any = None,
        **_: Any,
    ) -> Tensor:
        """Return states (B, T, D), as transformers' loop calls a layer."""
        held = cache if cache is not None else past_key_values
        return self.run(hidden_states, rotary_as_complex(*position_embeddings)[:, None], attention_mask, held)

    def run(
        self,
        states: Tensor,
        rotary: Tensor,
        mask: Tensor | None,
        cache: Any,
        last: Tensor | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Return states (B, T, D), or those (B, 1, D) of tokens `last` (B,).

        `rotary` is complex (B, 1, T, d/2); a mask is (B, 1, T, L), None is causal.
        """
        normed = self.first_norm(states)
        keys, values = self._heads(self.key_value(normed)).chunk(2, dim=1)  # (B, G, T, d)
        keys = apply_rotary(keys, rotary)
        if cache is not None:
            keys, values = cache.update(keys, values, self._layer)
        if last is not None:
            rows = torch.arange(len(last), device=last.device)
            mask = (torch.arange(keys.shape[2]) <= last[:, None])[:, None] if mask is None else mask[rows, :, last]
            mask, rotary = mask[:, :, None], rotary[rows, :, last][:, :, None]
            states, normed = states[rows, last][:, None], normed[rows, last][:, None]
        queries = apply_rotary(self._heads(self.query(normed)), rotary)  # (B, H, T, d)
        if watch is not None:
            watch(self._layer, queries, keys, mask, self._scaling)
        attended = self._attend(queries, keys, values, mask).transpose(1, 2).flatten(2)
        states = self.out.plus(attended, states)
        return self.mlp(self.second_norm(states), states)  # type: ignore[no-any-return]

    def _heads(self, states: Tensor) -> Tensor:
        """Reshape (B, T, heads · d) to (B, heads, T, d)."""
        return states.view(*states.shape[:2], -1, self._head_dim).transpose(1, 2)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        is_one = queries.shape[2] == 1
        if is_one:  # heads that share keys become rows of one product
            queries = queries.reshape(len(queries), -1, self._n_groups, self._head_dim)  # (B, G, H/G, d)
        is_causal = mask is None and not is_one
        attended = functional.scaled_dot_product_attention(
            queries, keys, values, mask, scale=self._scaling, is_causal=is_causal, enable_gqa=not is_one
        )
        return attended.flatten(1, 2).unsqueeze(2) if is_one else attended
