"""Compute how much memory a model takes, from its config and the headers of its weight files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qwenvl_kit.checkpoints.weight_files import TensorHeader, read_headers, weight_files

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.checkpoint import Checkpoint
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of one number, by the value of the option ``dtype``."""

_EXPORTED = (".onnx", ".data", ".npy")
_FLOATS = {"F64", "F32", "F16", "BF16"}  # which a loader converts to the dtype asked for
_STORED_BITS = {"F8_E4M3": 8, "F8_E5M2": 8, "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16, "F4": 4}


def kv_bytes_per_token(config: Mapping[str, Any], dtype: str) -> int:
    """Return the bytes of keys and values that one token takes, in all layers.

    Parameters
    ----------
    config : mapping
        Contents of a config.json, flat or nested.
    dtype : str
        ``bfloat16``, ``float16`` or ``float32``.

    Examples
    --------
    >>> seven_b = {"hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4, "num_hidden_layers": 28}
    >>> kv_bytes_per_token(seven_b, "bfloat16")
    57344
    """
    n_heads = text_field(config, "num_attention_heads")
    head = text_field(config, "head_dim", text_field(config, "hidden_size") // n_heads)
    heads = text_field(config, "num_key_value_heads", n_heads)
    return 2 * text_field(config, "num_hidden_layers") * heads * head * DTYPE_BYTES[dtype]


def weight_bytes(checkpoint: Checkpoint, dtype: str) -> int:
    """Return the bytes of a checkpoint's weights once loaded; quantised ones keep the size that they have on disk.

    Raises
    ------
    CheckpointError
        A weight file is missing, truncated or not a safetensors file.
    """
    headers = read_headers(weight_files(checkpoint.path, checkpoint.config))
    text = checkpoint.config.get("text_config") or {}
    if checkpoint.config.get("tie_word_embeddings", text.get("tie_word_embeddings")):
        headers.pop("lm_head.weight", None)  # the embeddings serve instead
    return sum(_tensor_bytes(header, dtype) for header in headers.values())


def file_bytes(checkpoint: Checkpoint, *, is_export: bool) -> int:
    """Return the bytes of the files that hold the weights."""
    suffixes = _EXPORTED if is_export else (".safetensors",)
    return sum(file.stat().st_size for file in checkpoint.path.iterdir() if file.suffix in suffixes)


def loaded_bytes(checkpoint: Checkpoint, resolved: ResolvedConfig) -> int:
    """Return the bytes of a model's weights once loaded: of a checkpoint, or of an export, which stays as it is."""
    if resolved.provider is not None:
        return file_bytes(checkpoint, is_export=True)
    return weight_bytes(checkpoint, resolved.dtype)


def text_field(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Return a number of the text model: under ``text_config`` in nested configs, at the top level of flat ones.

    Raises
    ------
    KeyError
        The config has no such number, and there is no `default`.
    """
    for place in (config.get("text_config") or {}, config):
        if place.get(name) is not None:
            return int(place[name])
    if default is None:
        raise KeyError(name)
    return default


def _tensor_bytes(header: TensorHeader, dtype: str) -> int:
    bits = 8 * DTYPE_BYTES[dtype] if header.dtype in _FLOATS else _STORED_BITS.get(header.dtype, 8)
    return math.prod(header.shape) * bits // 8
