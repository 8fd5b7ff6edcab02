"""The text model as one ONNX graph for all that a decode loop does: whole prompts, parts of prompts, single steps.

Keys and values live in buffers that the graph reads and extends in place (past and present are one buffer); a row's
tokens stand at its front, so rows of any length share a pass. The embedding table and what is sampled are outside.
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

    Inputs are ``inputs_embeds`` (B, T, H), ``position_ids`` (3, B, T), ``lengths`` (B,) (tokens of each row with the
    new ones, less one), ``total_length`` (the longest of them), ``new_lengths`` (B,) (new tokens of each row),
    ``logits_index`` (K,) (of which of the B·T tokens logits are wanted) and ``past_key_i``, ``past_value_i`` (B, heads,
    capacity, D). Outputs are ``logits`` (K, V) and ``present_key_i``, ``present_value_i``.

    Parameters
    ----------
    graph : GraphWriter
        Empty.
    config : transformers.Qwen2_5_VLTextConfig
        The text model's.
    tied : bool
        The output layer's weights are the embedding table.

    Raises
    ------
    CheckpointError
        The text model does something that this graph does not.
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
            *[""] * 9,  # rotary caches, bias and scales: angles are ours, since M-RoPE has three positions a token
            new_lengths,
            outputs=[f"attended_{layer}", *grown],
            domain=MICROSOFT,
            num_heads=heads,
            kv_num_heads=kv_heads,
        )
        attended = graph.add("Reshape", attended, flat)
        if layer == config.num_hidden_layers - 1:  # all that the last layer owes other tokens are keys and values
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
    """Refuse what a published checkpoint of the family does not do, instead of exporting something else."""
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise CheckpointError(
            f"rope_type={rope.get('rope_type')!r} cannot be exported; only 'default' can: a longer context is given by "
            "the torch backend"
        )
    if getattr(config, "use_sliding_window", False):
        raise CheckpointError(
            "use_sliding_window=True cannot be exported; no published checkpoint of the family has it"
        )
    if config.hidden_act != "silu":
        raise CheckpointError(f"hidden_act={config.hidden_act!r} cannot be exported; the family has 'silu'")
    head = config.hidden_size // config.num_attention_heads
    if head % 8:
        raise CheckpointError(
            f"a head of {head} numbers cannot be exported; ONNX Runtime's GroupQueryAttention takes multiples of 8"
        )
    if len(_axis_of(config)) != head // 2:
        raise CheckpointError(
            f"mrope_section={rope.get('mrope_section')} does not add up to half a head of {head} numbers; "
            "config.json is broken"
        )


def _frequencies(config: Any) -> NDArray[np.float32]:
    """Those of rotary embedding: transformers' own numbers, since a last bit of them is turned by every position."""
    frequencies, _ = Qwen2_5_VLRotaryEmbedding.compute_default_rope_parameters(config)
    as_array: NDArray[np.float32] = frequencies.numpy()
    return as_array


def _axis_of(config: Any) -> list[int]:
    """Which of the three positions turns each frequency: sections of them, in turn (M-RoPE)."""
    sections = config.rope_parameters.get("mrope_section", [16, 24, 24])
    return [at % 3 for at, size in enumerate(sections) for _ in range(size)]
