"""Write the vision tower as one ONNX graph for any number of images of one size.

Patches are in the order of attention windows. Their places, and the padding of windows to one length, are inputs, so
that one graph takes images of any size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionRotaryEmbedding

from qwenvl_kit.errors import CheckpointError
from qwenvl_kit.onnx_backend.export.graph import MICROSOFT, GraphWriter, angles

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EPSILON = 1e-6  # of every norm of the tower; config.json has that of the text model only


def write_vision(graph: GraphWriter, config: Any) -> None:
    """Write the vision tower into `graph`.

    Inputs are ``pixel_values`` (n, P, C·T·p·p), ``position_ids`` (2, n, P) (row and column of each patch),
    ``window_index`` (W·L,) (patches of each window, padded to L), ``window_mask`` (n·W, L) (0 at padding) and
    ``window_return`` (P,) (place of each patch among W·L). Output is ``features`` (n, P/merge², H).

    Parameters
    ----------
    graph : GraphWriter
        Empty.
    config : transformers.Qwen2_5_VLVisionConfig
        The vision tower's.

    Raises
    ------
    CheckpointError
        The tower uses a feature that this graph lacks.
    """
    if config.hidden_act != "silu":
        raise CheckpointError(
            f"vision_config.hidden_act={config.hidden_act!r} cannot be exported; only 'silu' can. Use backend='torch'."
        )
    width, n_heads, merge = config.hidden_size, config.num_heads, config.spatial_merge_size**2
    channels = config.in_channels * config.temporal_patch_size * config.patch_size**2
    # The name of the first axis is part of every export's digest.
    pixels = graph.input("pixel_values", graph.dtype, ["pictures", "patches", channels])
    positions = graph.input("position_ids", "int64", [2, "pictures", "patches"])
    index = graph.input("window_index", "int64", ["window_places"])
    mask = graph.input("window_mask", "int32", ["windows", "window_length"])
    back = graph.input("window_return", "int64", ["patches"])

    cos, sin = angles(graph, positions, _frequencies(config), _axis_of(width // n_heads))
    n_images = graph.add("Shape", pixels, end=1)
    by_image = graph.add("Concat", n_images, graph.constant([-1, width], "int64"), axis=0)  # (n, P, D)
    window_length = graph.add("Shape", mask, start=1, end=2)
    by_window = graph.add(
        "Concat", graph.constant([-1], "int64"), window_length, graph.constant([width], "int64"), axis=0
    )  # (n·W, L, D)
    flat = graph.constant([-1, width], "int64")

    def in_windows(part: str) -> str:
        filled = graph.add("Gather", part, index, axis=1)  # (n, W·L, D)
        cut: str = graph.add("Reshape", filled, by_window)
        return cut

    x = graph.add("Reshape", pixels, graph.constant([-1, channels], "int64"))
    # A convolution whose stride is its kernel is a matrix product of whole patches.
    x = graph.linear(x, "vision.patch_embed.proj", shape=(width, channels))  # (n·P, D)
    normed = graph.rms_norm(x, "vision.blocks.0.norm1", _EPSILON)
    for block in range(config.depth):
        name = f"vision.blocks.{block}"
        joint = graph.linear(normed, f"{name}.attn.qkv", bias=True)  # (n·P, 3·D)
        parts = graph.add("Split", joint, n_outputs=3, num_outputs=3, axis=-1)
        query, key, value = (graph.add("Reshape", part, by_image) for part in parts)
        query, key = (
            graph.add("RotaryEmbedding", part, cos, sin, num_heads=n_heads, interleaved=0) for part in (query, key)
        )
        if block in config.fullatt_block_indexes:
            attended = graph.add("MultiHeadAttention", query, key, value, domain=MICROSOFT, num_heads=n_heads)
        else:
            parts = [in_windows(part) for part in (query, key, value)]
            in_each = graph.add("MultiHeadAttention", *parts, "", mask, domain=MICROSOFT, num_heads=n_heads)
            attended = graph.add("Gather", graph.add("Reshape", in_each, by_image), back, axis=1)
        projected = graph.linear(graph.add("Reshape", attended, flat), f"{name}.attn.proj")
        normed, x = graph.add_then_rms_norm(projected, x, f"{name}.norm2", _EPSILON, bias_of=f"{name}.attn.proj")
        fed = graph.gated_mlp(normed, f"{name}.mlp", bias=True)
        after = f"vision.blocks.{block + 1}.norm1" if block + 1 < config.depth else "vision.merger.ln_q"
        normed, x = graph.add_then_rms_norm(fed, x, after, _EPSILON, bias_of=f"{name}.mlp.down_proj")
    joined = graph.add("Reshape", normed, graph.constant([-1, width * merge], "int64"))  # (n·P/merge², D·merge²)
    wide = graph.add("Gelu", graph.linear(joined, "vision.merger.mlp.0", bias=True))
    features = graph.linear(wide, "vision.merger.mlp.2", bias=True)
    by_token = graph.add("Concat", n_images, graph.constant([-1, config.out_hidden_size], "int64"), axis=0)
    graph.output("features", graph.dtype, ["pictures", "visual_tokens", config.out_hidden_size])
    graph.add("Reshape", features, by_token, outputs=["features"])


def _frequencies(config: Any) -> NDArray[np.float32]:
    """Return transformers' own axial rotary frequencies, equal for rows and columns."""
    frequencies, _ = Qwen2_5_VLVisionRotaryEmbedding.compute_axial_rope_parameters(config)
    return np.tile(frequencies.numpy(), 2)


def _axis_of(head: int) -> list[int]:
    return [0] * (head // 4) + [1] * (head // 4)
