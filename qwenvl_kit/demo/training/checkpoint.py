"""Build the embedded model and write it as a standard checkpoint folder, with processor and chat template."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from .tokenizer import CHAT_TEMPLATE, vocabulary_size

#: Pixel limits of the processor: 12 to 18 merged tokens, three or more on the shorter side up to an aspect of 2:1.
MIN_PIXELS = 12 * 28 * 28
MAX_PIXELS = 14_400

_WIDTH = 128
_HEADS = 4


def build_model(tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLForConditionalGeneration:
    """Build the model with random weights from torch's default generator."""
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _TOKENS.items()}
    end, pad = tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.convert_tokens_to_ids("<|endoftext|>")
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary_size(tokenizer),
            "hidden_size": _WIDTH,
            "intermediate_size": 384,
            "num_hidden_layers": 5,
            "num_attention_heads": _HEADS,
            "num_key_value_heads": _HEADS,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            # Width gets the slowest rotations: with the family's theta of 1e6 columns could not be told apart, and
            # with 5 nothing turns slowly enough to find an object by its colour wherever it stands.
            "rope_parameters": {"rope_type": "default", "rope_theta": 30.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "bos_token_id": pad,
            "eos_token_id": end,
            "pad_token_id": pad,
        },
        vision_config={
            "depth": 4,
            "hidden_size": _WIDTH,
            "intermediate_size": 320,
            "num_heads": _HEADS,
            "out_hidden_size": _WIDTH,
            "window_size": 56,
            "fullatt_block_indexes": [1, 2, 3],
        },
        tie_word_embeddings=True,
        **ids,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=[end, pad], pad_token_id=pad, bos_token_id=pad, max_new_tokens=256
    )
    return model


def save_folder(folder: Path, model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the model in bfloat16, and all other files that `from_pretrained` needs."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # save_pretrained makes it readable by its owner alone
    processor = build_processor(tokenizer)
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)  # published checkpoints keep pixel limits there


def build_processor(tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLProcessor:
    """Build the stock processor with the pixel limits of this model."""
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT_TEMPLATE,
    )


_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
