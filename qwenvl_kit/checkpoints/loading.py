"""Load a checkpoint's config and processor with transformers, from its folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoProcessor, Qwen2_5_VLConfig

from qwenvl_kit.checkpoints.adapters import SMALL_FILES, loadable
from qwenvl_kit.checkpoints.hf_logging import silence_transformers
from qwenvl_kit.checkpoints.library_errors import named_errors
from qwenvl_kit.checkpoints.weight_files import AGAIN, refuse_lfs_pointer
from qwenvl_kit.errors import CheckpointError

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.checkpoint import Checkpoint

FROM_BASE = "copy {} from the base model"


def load_processor(checkpoint: Checkpoint) -> Any:
    """Load a checkpoint's processor and tokenizer.

    Raises
    ------
    CheckpointError
        They cannot be loaded, or are another model's.
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
            f"{checkpoint.path}: its processor is a {type(processor).__name__} with a {type(image).__name__}; a "
            f"Qwen2VLImageProcessor and a tokenizer are needed; {FROM_BASE.format('preprocessor_config.json')}"
        )
    return processor


def load_config(checkpoint: Checkpoint) -> Any:
    """Load a checkpoint's config as transformers has it.

    Raises
    ------
    CheckpointError
        A value in it is none that transformers accepts.
    """
    fix = FROM_BASE.format("config.json")
    with (
        loadable(checkpoint) as folder,
        named_errors(checkpoint.path, "its config.json cannot be used", fix, folder),
        silence_transformers(),
    ):
        return Qwen2_5_VLConfig.from_pretrained(folder, local_files_only=True)


def _require_vocabulary(folder: Path) -> None:
    """Without these files transformers makes an empty tokenizer, and says nothing."""
    if (folder / "tokenizer.json").is_file():
        return
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return
    raise CheckpointError(
        f"{folder} has no tokenizer: tokenizer.json is missing, and so is vocab.json or merges.txt; "
        f"{FROM_BASE.format('tokenizer.json and tokenizer_config.json')}. {AGAIN}"
    )
