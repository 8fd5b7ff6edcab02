"""Write the text model as one ONNX graph for whole prompts, parts of prompts and single steps.

The graph reads and extends keys and values in place: past and present are one buffer. A row's tokens start at its
front, so rows of any length share a pass. The embedding table is not part of the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

from qwenvl_kit.errors import CheckpointError
from qwenvl_kit.onnx_backend.export.graph import MICROSOFT, GraphWriter, angles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def write_decoder(graph: GraphWriter, config: Any, *, tied: bool) -> None:
    """Write the text model into `graph`.

    Inputs are ``inputs_embeds`` (B, T, H), ``position_ids`` (3, B, T), ``lengths`` (B,) (tokens of each row including
    the new ones, minus one), ``total_length`` (the maximum), ``new_lengths`` (B,) (new tokens of each row),
    ``logits_index`` (K,) (which of the B·T tokens need logits) and ``past_key_i``, ``past_value_i`` (B, heads,
    capacity, D). Outputs are ``logits`` (K, V) and ``present_key_i``, ``present_value_i``.

    Parameters
    ----------
    graph : GraphWriter
        Empty.
    config : transformers.Qwen2_5_VLTextConfig
        The text model's.
    tied : bool
        Whether the output layer's weights are the embedding table.

    Raises
    ------
    CheckpointError
        The text model uses a feature that this graph lacks.
    """
    _check(config)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head = config.hidden_size // heads
    embeds = graph.input("inputs_embeds", graph.dtype, ["batch", "tokens", config.hidden_size])
    positions = graph.input("position_ids", "int64", [3, "batch", "tokens"])
    lengths = graph.input("lengths", "int32", ["batch"])
    total = graph.input("total_length", "int32", [])
    new_lengths = graph.input("new_lengths", "int32", ["batch"])
    wanted = graph.input("logits_index", "int64", ["wanted"])

    cos, sin = angles(graph, positions, _frequencies(config), _axis_of(config))
    rows = graph.add("Shape", embeds, end=2)
    by_row = graph.add("Concat", rows, graph.constant([-1], "int64"), axis=0)  # (B, T, -1)
    x = graph.add("Reshape", embeds, graph.constant([-1, config.hidden_size], "int64"))  # (B·T, H)
    flat = graph.constant([-1, heads * head], "int64")

    def rotated(part: str, n_heads: int) -> str:
        turned: str = graph.add(
            "RotaryEmbedding", graph.add("Reshape", part, by_row), cos, sin, num_heads=n_heads, interleaved=0
        )
        return turned

    normed = graph.rms_norm(x, "text.layers.0.input_layernorm", config.rms_norm_eps)
    for layer in range(config.num_hidden_layers):
        name = f"text.layers.{layer}"
        query, key, value = (graph.linear(normed, f"{name}.self_attn.{one}_proj", bias=True) for one in "qkv")
        cache = [
            graph.input(f"past_{one}_{layer}", graph.dtype, ["batch", kv_heads, "capacity", head])
            for one in ("key", "value")
        ]
        grown = [
            graph.output(f"present_{one}_{layer}", graph.dtype, ["batch", kv_heads, "capacity", head])
            for one in ("key", "value")
        ]
        attended, *_ = graph.add(
            "GroupQueryAttention",
            rotated(query, heads),
            rotated(key, kv_heads),
            graph.add("Reshape", value, by_row),
            *cache,
            lengths,
            total,
            *[""] * 9,  # rotary caches, bias and scales: M-RoPE has three positions a token, so angles are ours
            new_lengths,
            outputs=[f"attended_{layer}", *grown],
            domain=MICROSOFT,
            num_heads=heads,
            kv_num_heads=kv_heads,
        )
        attended = graph.add("Reshape", attended, flat)
        if layer == config.num_hidden_layers - 1:  # other tokens need only their keys and values from the last layer
            attended, x = (graph.add("Gather", states, wanted, axis=0) for states in (attended, x))  # (K, H)
        projected = graph.linear(attended, f"{name}.self_attn.o_proj")
        normed, x = graph.add_then_rms_norm(projected, x, f"{name}.post_attention_layernorm", config.rms_norm_eps)
        fed = graph.gated_mlp(normed, f"{name}.mlp")
        following = layer + 1
        next_norm = f"text.layers.{following}.input_layernorm" if following < config.num_hidden_layers else "text.norm"
        normed, x = graph.add_then_rms_norm(fed, x, next_norm, config.rms_norm_eps)
    logits = graph.linear(normed, "text.embed_tokens" if tied else "lm_head")
    graph.output("logits", "float32", ["wanted", config.vocab_size])
    if graph.dtype == "float32":
        graph.add("Identity", logits, outputs=["logits"])
    else:
        graph.add("Cast", logits, outputs=["logits"], to=1)


def _check(config: Any) -> None:
    """Refuse features that no published checkpoint of the family uses, instead of exporting a wrong graph."""
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise CheckpointError(
            f"rope_type={rope.get('rope_type')!r} cannot be exported; only 'default' can. Use backend='torch' for a "
            "longer context."
        )
    if getattr(config, "use_sliding_window", False):
        raise CheckpointError(
            "use_sliding_window=True cannot be exported; no published checkpoint has it. Use backend='torch'."
        )
    if config.hidden_act != "silu":
        raise CheckpointError(
            f"hidden_act={config.hidden_act!r} cannot be exported; only 'silu' can. Use backend='torch'."
        )
    head = config.hidden_size // config.num_attention_heads
    if head % 8:
        raise CheckpointError(
            f"A head size of {head} cannot be exported; ONNX Runtime's GroupQueryAttention takes multiples of 8. Use "
            "backend='torch'."
        )
    if len(_axis_of(config)) != head // 2:
        raise CheckpointError(
            f"mrope_section={rope.get('mrope_section')} must add up to half the head size of {head}. Copy config.json "
            "from the base model."
        )


def _frequencies(config: Any) -> NDArray[np.float32]:
    """Return transformers' own rotary frequencies: every position multiplies an error in their last bit."""
    frequencies, _ = Qwen2_5_VLRotaryEmbedding.compute_default_rope_parameters(config)
    as_array: NDArray[np.float32] = frequencies.numpy()
    return as_array


def _axis_of(config: Any) -> list[int]:
    """Return the position axis of each frequency: M-RoPE assigns them in sections."""
    sections = config.rope_parameters.get("mrope_section", [16, 24, 24])
    return [at % 3 for at, size in enumerate(sections) for _ in range(size)]
