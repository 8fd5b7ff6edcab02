"""Check a checkpoint's tokens, patches, chat template and generation settings, before any row is read.

Each check raises a `CheckpointError` that names the folder and what to do.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qwenvl_kit.checkpoints.checkpoint import read
from qwenvl_kit.checkpoints.generation_config import biases, defaults_of, own_processors
from qwenvl_kit.checkpoints.library_errors import named_errors
from qwenvl_kit.checkpoints.loading import FROM_BASE, load_config, load_processor
from qwenvl_kit.checkpoints.preflight import check_weights
from qwenvl_kit.errors import CheckpointError
from qwenvl_kit.inference.processor import InputProcessor
from qwenvl_kit.options import Config
from qwenvl_kit.types import LoadedImage

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.checkpoint import Checkpoint

_PROMPT = "Describe this picture."


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids that a checkpoint's configs and tokenizer agree on.

    Attributes
    ----------
    eos_ids : tuple of int
        Tokens that end an answer.
    pad_id : int
        The token that fills shorter prompts.
    vocab_size : int
        Rows of the embedding table.
    """

    eos_ids: tuple[int, ...]
    pad_id: int
    vocab_size: int


def check_checkpoint(checkpoint: Checkpoint, *, device: str = "cpu") -> Tokens:
    """Check a checkpoint, except the numbers in its weights.

    Parameters
    ----------
    checkpoint : Checkpoint
        The checkpoint.
    device : str
        Device of the model; some packages read quantised weights on CUDA only.

    Raises
    ------
    CheckpointError
        A tensor is missing or has another shape; or processor, tokenizer or chat template cannot be used.
    """
    return _check_checkpoint(checkpoint.path, checkpoint.state, device)


def check_export(checkpoint: Checkpoint) -> Tokens:
    """Check the configs, the tokenizer and the chat template of an ONNX export.

    Raises
    ------
    CheckpointError
        One of them cannot be used.
    """
    return _check_export(checkpoint.path, checkpoint.state)


def tokens_of(checkpoint: Checkpoint, processor: Any, config: Any) -> Tokens:
    """Return the special token ids of a checkpoint, each from the first config that has it.

    Raises
    ------
    CheckpointError
        There is no usable end token, or configs and tokenizer contradict each other.
    """
    folder, tokenizer = checkpoint.path, processor.tokenizer
    vocab_size = int(config.text_config.vocab_size)
    eos_ids = checkpoint.eos_token_ids
    if not eos_ids and tokenizer.eos_token_id is not None:
        eos_ids = (int(tokenizer.eos_token_id),)
    if not eos_ids or any(not 0 <= one < vocab_size for one in eos_ids):
        raise CheckpointError(
            f"{folder}: unusable eos_token_id {list(eos_ids)} for a vocabulary of {vocab_size} tokens; answers would "
            "never end. Set eos_token_id in generation_config.json to the id of <|im_end|>."
        )
    if processor.image_token_id != config.image_token_id:
        raise CheckpointError(
            f"{folder}: image_token_id is {config.image_token_id} in config.json and {processor.image_token_id} in the "
            f"tokenizer; they must be equal. {FROM_BASE.format('tokenizer.json')}."
        )
    pad_id = tokenizer.pad_token_id
    usable = pad_id is not None and 0 <= pad_id < vocab_size and pad_id != processor.image_token_id
    return Tokens(eos_ids, int(pad_id) if usable else eos_ids[0], vocab_size)


@functools.lru_cache(maxsize=16)
def _check_checkpoint(folder: Path, state: object, device: str) -> Tokens:
    checkpoint = read(folder)
    config = load_config(checkpoint)
    check_weights(checkpoint, config, device=device)
    return _check_tokenization(checkpoint, config)


@functools.lru_cache(maxsize=16)
def _check_export(folder: Path, state: object) -> Tokens:
    checkpoint = read(folder, weights="*.onnx")
    return _check_tokenization(checkpoint, load_config(checkpoint))


def _check_tokenization(checkpoint: Checkpoint, config: Any) -> Tokens:
    """Check that patches, tokens and the chat template match the model."""
    processor = load_processor(checkpoint)
    _check_patches(checkpoint.path, processor.image_processor, config.vision_config)
    trouble = "its tokenizer cannot be used"
    with named_errors(checkpoint.path, trouble, FROM_BASE.format("tokenizer.json and tokenizer_config.json")):
        tokens = tokens_of(checkpoint, processor, config)
        encoder = InputProcessor(processor, checkpoint.context, vocab_size=tokens.vocab_size)
        processor.tokenizer.decode(encoder.ids(_PROMPT), skip_special_tokens=True)
    _check_cutting(checkpoint.path, encoder, config.vision_config)
    _check_template(checkpoint.path, processor, encoder)
    _check_settings(checkpoint, encoder, tokens)
    if (size := int(processor.tokenizer.vocab_size)) > tokens.vocab_size:
        raise CheckpointError(
            f"{checkpoint.path}: its tokenizer has {size} tokens and the model {tokens.vocab_size}. They belong to "
            f"different models. {FROM_BASE.format('tokenizer.json')}."
        )
    return tokens


def _check_settings(checkpoint: Checkpoint, encoder: InputProcessor, tokens: Tokens) -> None:
    """Apply the checkpoint's own generation settings to logits of zeros."""
    settings = dict(defaults_of(checkpoint, Config()).generation)
    if not settings:
        return
    fix = "Correct generation_config.json"
    with named_errors(checkpoint.path, f"its generation settings {', '.join(settings)} cannot be used", fix):
        ids = torch.tensor([encoder.ids(encoder.render(1, _PROMPT, None))])  # (1, T)
        for chain in (biases(settings), own_processors(settings, ids.shape[1], tokens.eos_ids, ids.device)):
            chain(ids, torch.zeros(1, tokens.vocab_size))


def _check_patches(folder: Path, processor: Any, vision: Any) -> None:
    names = {
        "patch_size": "patch_size",
        "merge_size": "spatial_merge_size",
        "temporal_patch_size": "temporal_patch_size",
    }
    for name, wanted_name in names.items():
        found, wanted = getattr(processor, name, None), getattr(vision, wanted_name)
        if found != wanted:
            raise CheckpointError(
                f"{folder}: {name} is {found!r} in its image processor's config and {wanted!r} in config.json "
                f"(vision_config.{wanted_name}); they must be equal. {FROM_BASE.format('preprocessor_config.json')}."
            )


def _check_cutting(folder: Path, encoder: InputProcessor, vision: Any) -> None:
    """Check the patches of a blank image of two merged patches a side."""
    side, fix = 2 * vision.spatial_merge_size, FROM_BASE.format("preprocessor_config.json")
    pixels = np.zeros((side * vision.patch_size, side * vision.patch_size, 3), np.uint8)
    with named_errors(folder, "its image processor cannot cut an image into patches", fix):
        patches = encoder.patchify(LoadedImage(pixels, "", pixels.shape[:2]))  # (P, C·T·p·p)
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        wanted, is_finite = (side * side, width), bool(patches.isfinite().all())
    if tuple(patches.shape) != wanted or not is_finite:
        raise CheckpointError(
            f"{folder}: its image processor makes {'' if is_finite else 'non-finite '}patches of shape "
            f"{tuple(patches.shape)}. The model takes {wanted}. {fix}."
        )


def _check_template(folder: Path, processor: Any, encoder: InputProcessor) -> None:
    """Check that the chat template has a place for each image and for the prompt."""
    fix = FROM_BASE.format("chat_template.json or chat_template.jinja")
    if getattr(processor, "chat_template", None) is None:
        raise CheckpointError(f"{folder} has no chat template. {fix}.")
    with named_errors(folder, "its chat template cannot be rendered with an image and a text", fix):
        texts = {n: encoder.render(n, _PROMPT, None) for n in (1, 2)}
        places = {n: encoder.ids(text).count(processor.image_token_id) for n, text in texts.items()}
        bare = encoder.render(1, _PROMPT, None, add_generation_prompt=False)
        most = max(encoder.ids(texts[1]))
    if any(n != found for n, found in places.items()):
        raise CheckpointError(
            f"{folder}: its chat template has {places[1]} places for one image and {places[2]} for two. A template "
            f"for texts only has none. {fix}."
        )
    if _PROMPT not in texts[1]:
        raise CheckpointError(f"{folder}: its chat template leaves the prompt out. {fix}.")
    if texts[1] == bare and not texts[1].rstrip().endswith("assistant"):
        raise CheckpointError(
            f"{folder}: its chat template ignores add_generation_prompt, so no answer would begin after it. {fix}."
        )
    if most >= encoder.vocab_size:
        raise CheckpointError(
            f"{folder}: token {most} of its tokenizer is beyond the {encoder.vocab_size} tokens of the model. They "
            f"belong to different models. {FROM_BASE.format('tokenizer.json')}."
        )
