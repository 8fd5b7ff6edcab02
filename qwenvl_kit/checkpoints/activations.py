"""Compute how much memory the passes of a model take while they run, from its shape.

Each formula counts the tensors that live at once at a pass's widest place. `tests/benchmarks/plan_memory.py` compares
them with measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from qwenvl_kit.checkpoints.footprint import DTYPE_BYTES

if TYPE_CHECKING:
    from qwenvl_kit.options import DType

_FLOAT = 4  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Widths and depths of a model.

    Attributes
    ----------
    hidden, intermediate, layers, heads, kv_heads, head, vocab : int
        Of the language model.
    vision_hidden, vision_intermediate, vision_layers, vision_heads : int
        Of the vision tower.
    patch_values : int
        Numbers in one patch.
    merge : int
        Patches per side of one visual token.
    tied : bool
        Whether the embeddings are the head's weights too.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    vocab: int
    vision_hidden: int
    vision_intermediate: int
    vision_layers: int
    vision_heads: int
    patch_values: int
    merge: int
    tied: bool

    @classmethod
    def of(cls, config: Any) -> Self:
        """Return the shape of a transformers.Qwen2_5_VLConfig."""
        text, vision = config.text_config, config.vision_config
        return cls(
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            vocab=text.vocab_size,
            vision_hidden=vision.hidden_size,
            vision_intermediate=vision.intermediate_size,
            vision_layers=vision.depth,
            vision_heads=vision.num_heads,
            patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            merge=vision.spatial_merge_size,
            tied=bool(config.tie_word_embeddings),
        )

    @property
    def n_parameters(self) -> int:
        """Numbers in the weights; a tied head counts once.

        Examples
        --------
        >>> seven_b = ModelShape(hidden=3584, intermediate=18944, layers=28, heads=28, kv_heads=4, head=128,
        ...     vocab=152064, vision_hidden=1280, vision_intermediate=3420, vision_layers=32, vision_heads=16,
        ...     patch_values=1176, merge=2, tied=False)
        >>> 2 * seven_b.n_parameters  # bytes of the published weights in bfloat16
        16584333312
        """
        kv, out = self.kv_heads * self.head, self.heads * self.head
        attention = (self.hidden + 1) * (out + 2 * kv) + out * self.hidden
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        text = self.layers * layer + self.hidden + self.vocab * self.hidden * (1 if self.tied else 2)
        wide, inner = self.vision_hidden, self.vision_intermediate
        block = 4 * wide * (wide + 1) + 2 * (wide + 1) * inner + (inner + 1) * wide + 2 * wide
        merged = wide * self.merge**2
        merger = wide + (merged + 1) * merged + (merged + 1) * self.hidden
        return text + self.patch_values * wide + self.vision_layers * block + merger


def patch_bytes(shape: ModelShape, n_patches: int) -> int:
    """Return the bytes of images cut into patches: each alone, and joined for the pass."""
    return 2 * n_patches * shape.patch_values * _FLOAT


def feature_bytes(shape: ModelShape, n_visual: int, dtype: DType) -> int:
    """Return the bytes of visual tokens, which are encoded once for all prompts about an image."""
    return n_visual * shape.hidden * DTYPE_BYTES[dtype]


def vision_pass_bytes(shape: ModelShape, n_patches: int, dtype: DType, *, block_rows: int, is_prepacked: bool) -> int:
    """Return the most bytes that a vision pass holds beside its patches.

    Parameters
    ----------
    shape : ModelShape
        The model's.
    n_patches : int
        Of all images in the pass.
    dtype : str
        Of the weights.
    block_rows : int
        Patches that go through linear layers at once; a pass of no more is not cut.
    is_prepacked : bool
        Whether the layers run on oneDNN's prepacked weights.
    """
    size, wide, inner = DTYPE_BYTES[dtype], shape.vision_hidden, shape.vision_intermediate
    rows = min(n_patches, block_rows)
    if n_patches <= block_rows:  # q, k and v are parts of larger tensors, which live as long
        held = (8 if is_prepacked else 10) * wide * size
        attention = (11 if is_prepacked else 14) * wide * size
    else:
        held = (7 if is_prepacked else 6) * wide * size
        attention = (9 if is_prepacked else 10) * wide * size  # states, q, k, v, the sorted copies, and the sums
    if is_prepacked:
        return max(n_patches * attention, n_patches * held + rows * (2 * wide + 2 * inner) * size)
    norms = n_patches * (wide * size + 2 * wide * _FLOAT)
    rotary = n_patches * 5 * wide * size + rows * (5 * wide * size + 4 * wide * _FLOAT)  # turned in float32
    network = n_patches * 3 * wide * size + rows * 2 * inner * size
    return max(norms, rotary, n_patches * attention, network)


def prompt_pass_bytes(
    shape: ModelShape, n_tokens: int, n_rows: int, room: int, dtype: DType, *, is_prepacked: bool
) -> int:
    """Return the most bytes that a prompt pass holds.

    Parameters
    ----------
    shape : ModelShape
        The model's.
    n_tokens : int
        Of all rows in the pass, padding included.
    n_rows : int
        Rows in the pass.
    room : int
        Tokens that a row attends to.
    dtype : str
        Of the weights.
    is_prepacked : bool
        Whether the layers run on oneDNN's prepacked weights.
    """
    size, wide, inner = DTYPE_BYTES[dtype], shape.hidden, shape.intermediate
    kv = 2 * shape.kv_heads * shape.head
    is_cut = room > n_tokens  # pieces of a long prompt attend to cached tokens, which are copied, under a mask
    cached = n_rows * room * kv * size + n_tokens * room * (1 + size) if is_cut else 0
    attention = (7 * wide + 2 * kv) * n_tokens * size + cached
    network = (7 * wide + kv + 3 * inner) * n_tokens * size
    norms = 0 if is_prepacked else n_tokens * (wide * size + 2 * wide * _FLOAT)
    return max(attention, network, norms)


def logits_bytes(shape: ModelShape, n_rows: int, dtype: DType) -> int:
    """Return the most bytes of a step's logits: the head's, and what is sampled from, in float32, four times."""
    return n_rows * shape.vocab * (DTYPE_BYTES[dtype] + 4 * _FLOAT)
