"""Count the floating-point operations of a prompt phase's matrix products, which every implementation needs.

Additions and multiplications count one each; norms, activations and other sums count zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def looking(vision: Any, grid: tuple[int, int, int]) -> float:
    """Operations of the vision tower for an image of (frames, rows, columns) patches.

    Parameters
    ----------
    vision : transformers.Qwen2_5_VLVisionConfig
    """
    n, width, merge = math.prod(grid), vision.hidden_size, vision.spatial_merge_size**2
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    block = 4 * width * width + 3 * width * vision.intermediate_size  # weights: queries, keys, values, output; gated
    window = (vision.window_size // vision.patch_size) ** 2  # patches of a full one
    n_full = len(vision.fullatt_block_indexes)
    attended = n_full * n + (vision.depth - n_full) * min(window, n)  # by each patch, over all blocks
    joined = (width * merge) ** 2 + width * merge * vision.out_hidden_size
    return 2 * n * (patch * width + vision.depth * block + 2 * width * attended + joined / merge)


def stored(text: Any) -> int:
    """Weights of a text layer that make keys and values."""
    size: int = 2 * text.hidden_size**2 * text.num_key_value_heads // text.num_attention_heads
    return size


def others(text: Any) -> int:
    """All other weights of a text layer's products."""
    size: int = 2 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size
    return size


def reading(text: Any, rows: Iterable[tuple[int, int]]) -> float:
    """Operations of the text model for rows of (new tokens, tokens before them).

    The last layer owes keys and values of all tokens, and the rest of the last one only.

    Parameters
    ----------
    text : transformers.Qwen2_5_VLTextConfig
    """
    hidden, n_layers = text.hidden_size, text.num_hidden_layers
    total = 0.0
    for new, before in rows:
        attended = new * before + new * (new + 1) / 2  # pairs of tokens, none of them ahead
        total += (n_layers - 1) * (new * (stored(text) + others(text)) + 2 * hidden * attended)
        total += new * stored(text) + others(text) + 2 * hidden * (before + new) + hidden * text.vocab_size
    return 2 * total
