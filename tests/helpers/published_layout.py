"""Files of a checkpoint as the authors published it: the configs of Qwen/Qwen2.5-VL-3B-Instruct and its larger sisters.

A flat config.json with the text model's fields at the top level, ``rope_scaling`` of type ``mrope``,
preprocessor_config.json, and weights under the names that the authors gave them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FORMER = {"model.language_model.": "model.", "model.visual.": "visual."}


def published_name(name: str) -> str:
    """Return the published name of a weight, given today's."""
    return next((old + name.removeprefix(new) for new, old in _FORMER.items() if name.startswith(new)), name)


def published_configs(
    ids: Mapping[str, int],
    *,
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    min_pixels: int = 3136,
    max_pixels: int,
) -> dict[str, dict[str, Any]]:
    """Return the JSON files of a checkpoint by name.

    Parameters
    ----------
    ids : mapping of str to int
        Ids of the control tokens.
    text : mapping
        Fields of config.json: sizes of the text model, and what differs from the published values.
    vision : mapping
        The same of its ``vision_config``.
    min_pixels, max_pixels : int
        Limits of images.
    """
    end, stop = ids["<|im_end|>"], ids["<|endoftext|>"]
    head = text["hidden_size"] // text["num_attention_heads"]
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": stop,
        "eos_token_id": end,
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "max_window_layers": text["num_hidden_layers"],
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [head // 8, head // 16 * 3, head // 16 * 3]},
        **text,
    }
    config["vision_config"] = {
        "hidden_act": "silu",
        "in_chans": 3,
        "out_hidden_size": text["hidden_size"],
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
        **vision,
    }
    return {
        "config.json": config,
        "generation_config.json": {
            "bos_token_id": stop,
            "pad_token_id": stop,
            "do_sample": True,
            "eos_token_id": [end, stop],
            "repetition_penalty": 1.05,
            "temperature": 1e-06,
        },
        "preprocessor_config.json": {
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
    }
