"""Load a checkpoint's config and processor with transformers, from its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoProcessor, Qwen2_5_VLConfig

from qwenvl_kit.checkpoints.adapters import SMALL_FILES, loadable
from qwenvl_kit.checkpoints.hf_logging import silence_transformers
from qwenvl_kit.checkpoints.library_errors import named_errors
from qwenvl_kit.checkpoints.weight_files import AGAIN, read_headers, refuse_lfs_pointer, weight_files
from qwenvl_kit.errors import CheckpointError

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.checkpoint import Checkpoint

FROM_BASE = "Copy {} from the base model"
_STORED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}  # safetensors' names


def load_processor(checkpoint: Checkpoint) -> Any:
    """Load a checkpoint's processor and tokenizer.

    Raises
    ------
    CheckpointError
        They cannot be loaded, or belong to another model.
    """
    _require_vocabulary(checkpoint.path)
    for file in checkpoint.path.iterdir():
        if file.suffix in SMALL_FILES and file.is_file():
            refuse_lfs_pointer(file)
    fix = FROM_BASE.format("preprocessor_config.json, tokenizer.json and tokenizer_config.json")
    with (
        loadable(checkpoint) as folder,
        named_errors(checkpoint.path, "its processor or tokenizer cannot be loaded", fix, folder),
        silence_transformers(),
    ):
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    image = getattr(processor, "image_processor", None)
    if not type(image).__name__.startswith("Qwen2VLImageProcessor") or getattr(processor, "tokenizer", None) is None:
        raise CheckpointError(
            f"{checkpoint.path}: its processor is a {type(processor).__name__} with a {type(image).__name__}. A "
            f"Qwen2VLImageProcessor and a tokenizer are required. {FROM_BASE.format('preprocessor_config.json')}."
        )
    return processor


def load_config(checkpoint: Checkpoint) -> Any:
    """Load a checkpoint's config as an object of transformers.

    Raises
    ------
    CheckpointError
        transformers rejects a value in it.
    """
    fix = FROM_BASE.format("config.json")
    with (
        loadable(checkpoint) as folder,
        named_errors(checkpoint.path, "its config.json cannot be used", fix, folder),
        silence_transformers(),
    ):
        return Qwen2_5_VLConfig.from_pretrained(folder, local_files_only=True)


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """Return the dtype of all tensors in a checkpoint's files; float32 if they have several."""
    dtypes = {header.dtype for header in read_headers(weight_files(checkpoint.path, checkpoint.config)).values()}
    return _STORED.get(dtypes.pop(), torch.float32) if len(dtypes) == 1 else torch.float32


def _require_vocabulary(folder: Path) -> None:
    """Raise if the tokenizer's files are missing; transformers would silently make an empty one."""
    if (folder / "tokenizer.json").is_file():
        return
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return
    raise CheckpointError(
        f"{folder} has no tokenizer: tokenizer.json is missing, and so is vocab.json or merges.txt. "
        f"{FROM_BASE.format('tokenizer.json and tokenizer_config.json')}. {AGAIN}."
    )
