"""Run the layers of the stock model over packed batches.

transformers runs vision attention image by image and has no packed rows. Training spends its time here, so the same
weights are applied to padded tensors. A test compares the result with the forward of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

PLACED_LAYER = 1
GUIDED_LAYER = 2
GUIDED_HEADS = 2


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """Hidden states and scores of the text layers.

    Attributes
    ----------
    last
        (B, T, D) after the last layer, before the norm.
    placed
        (B, T, D) after the layer that knows the place of every object.
    middle
        (B, T, D) after the guided layer.
    scores
        (B, guided heads, T, T) masked attention scores of the guided layer, before the softmax.
    """

    last: Tensor
    placed: Tensor
    middle: Tensor
    scores: Tensor

    def float(self) -> Hidden:
        """Return the same in float32."""
        return Hidden(
            last=self.last.float(),
            placed=self.placed.float(),
            middle=self.middle.float(),
            scores=self.scores.float(),
        )


def run_vision(model: Qwen2_5_VLForConditionalGeneration, patches: Tensor, places: Tensor, windows: Tensor) -> Tensor:
    """Run the vision tower over a padded batch.

    Parameters
    ----------
    model
        The whole model.
    patches
        (B, N, 588) normalised pixels of one frame, four neighbours after one another as the processor orders them.
    places
        (B, N, 2) row and column of each patch.
    windows
        (B, N) window of each patch, -1 where a patch is padding.

    Returns
    -------
    torch.Tensor
        (B, N / 4, D), one row for each merged token.
    """
    visual = model.model.visual
    n_batch, n_patches, _ = patches.shape
    kernel = visual.patch_embed.proj.weight.sum(dim=2).flatten(1)  # both frames of a still image are equal
    x = F.linear(patches, kernel)  # (B, N, D)
    angles = places[..., None].float() * visual.rotary_pos_emb.inv_freq  # (B, N, 2, F)
    arrange = visual.rotary_pos_emb.recomposition_frequencies
    arranged = [arrange(part.flatten(0, 1)) for part in (angles.cos(), angles.sin())]
    cos, sin = (part.view(n_batch, 1, n_patches, -1) for part in arranged)  # (B, 1, N, d)
    same_window = windows[:, None, :, None] == windows[:, None, None, :]
    any_image = (windows >= 0)[:, None, None, :].expand(-1, 1, n_patches, -1)
    for index, block in enumerate(visual.blocks):
        mask = any_image if index in visual.fullatt_block_indexes else same_window
        qkv = block.attn.qkv(_norm(block.norm1, x)).view(n_batch, n_patches, 3, block.attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, d)
        attended = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v, _bias(mask))
        x = x + block.attn.proj(attended.transpose(1, 2).flatten(2))
        x = x + _gated(block.mlp, _norm(block.norm2, x))
    merged = _norm(visual.merger.ln_q, x).view(n_batch, n_patches // 4, -1)
    features: Tensor = visual.merger.mlp(merged)
    return features


def run_text(
    model: Qwen2_5_VLForConditionalGeneration, embeddings: Tensor, positions: Tensor, allowed: Tensor
) -> Hidden:
    """Run the text layers over packed rows.

    Parameters
    ----------
    model
        The whole model.
    embeddings
        (B, T, D) token embeddings, with image features in place of image tokens.
    positions
        (3, B, T) for time, height and width.
    allowed
        bool (B, T, T), True where a query attends to a key.
    """
    text = model.model.language_model
    n_batch, n_tokens, _ = embeddings.shape
    cos, sin = (part.unsqueeze(1) for part in text.rotary_emb(embeddings, positions))  # (B, 1, T, d)
    bias = _bias(allowed.unsqueeze(1))
    x, placed, middle, scores = embeddings, embeddings, embeddings, embeddings
    for index, layer in enumerate(text.layers):
        attention = layer.self_attn
        normed = _norm(layer.input_layernorm, x)
        q, k, v = (
            projection(normed).view(n_batch, n_tokens, -1, attention.head_dim).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        x = x + attention.o_proj(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2))
        x = x + _gated(layer.mlp, _norm(layer.post_attention_layernorm, x))
        if index == PLACED_LAYER:
            placed = x
        if index == GUIDED_LAYER:
            middle = x
            scores = q[:, :GUIDED_HEADS] @ k[:, :GUIDED_HEADS].transpose(2, 3) * attention.scaling + bias
    return Hidden(last=x, placed=placed, middle=middle, scores=scores)


def predict(model: Qwen2_5_VLForConditionalGeneration, hidden: Tensor) -> Tensor:
    """Return logits (K, V) for hidden states (K, D)."""
    return F.linear(_norm(model.model.language_model.norm, hidden), model.lm_head.weight)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight.to(x.dtype), norm.variance_epsilon)


def _gated(mlp: Any, x: Tensor) -> Tensor:
    out: Tensor = mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
    return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _bias(allowed: Tensor) -> Tensor:
    return torch.zeros(allowed.shape).masked_fill(~allowed, -1e9)
