"""Random checkpoints of the published shapes, in the published layout, made on the device that runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from qwenvl_kit.demo.training.tokenizer import build_tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "7b": {"hidden": 3584, "layers": 28, "heads": 28, "kv": 4, "inner": 18944, "vocab": 152064, "depth": 32},
    "3b": {"hidden": 2048, "layers": 36, "heads": 16, "kv": 2, "inner": 11008, "vocab": 151936, "depth": 32},
    "7b-thin": {"hidden": 3584, "layers": 4, "heads": 28, "kv": 4, "inner": 18944, "vocab": 152064, "depth": 8},
    "tiny": {"hidden": 448, "layers": 4, "heads": 28, "kv": 4, "inner": 256, "vocab": 2048, "depth": 8},
}
_TIED = ("3b",)
_PUBLISHED_AS = {"model.language_model.": "model.", "model.visual.": "visual."}
_SHARD_BYTES = 4 * 2**30


def make_checkpoint(folder: Path, shape: str, *, device: str, max_pixels: int) -> Path:
    """Write a random checkpoint; a 7B takes 16.6 GB, a 3B 7.5 GB."""
    folder.mkdir(parents=True)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_added_vocab()}
    for name, content in _configs(shape, ids, max_pixels).items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(folder))
    _save_weights(folder, model.state_dict(), device, tied=shape in _TIED)
    return folder


def _configs(shape: str, ids: dict[str, int], max_pixels: int) -> dict[str, dict[str, Any]]:
    size = SHAPES[shape]
    head = size["hidden"] // size["heads"]
    end, stop = ids["<|im_end|>"], ids["<|endoftext|>"]
    vision = {
        "depth": size["depth"],
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": size["hidden"],
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [block for block in (7, 15, 23, 31) if block < size["depth"]],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    }
    if shape == "tiny":
        vision |= {"hidden_size": 160, "intermediate_size": 128, "num_heads": 2}
    return {
        "config.json": {
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
            "hidden_size": size["hidden"],
            "initializer_range": 0.02,
            "intermediate_size": size["inner"],
            "max_position_embeddings": 128000,
            "max_window_layers": size["layers"],
            "num_attention_heads": size["heads"],
            "num_hidden_layers": size["layers"],
            "num_key_value_heads": size["kv"],
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "sliding_window": 32768,
            "tie_word_embeddings": shape in _TIED,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
            "vision_config": vision,
            "vocab_size": size["vocab"],
            "rope_scaling": {"type": "mrope", "mrope_section": [head // 8, head // 16 * 3, head // 16 * 3]},
        },
        "generation_config.json": {
            "bos_token_id": stop,
            "pad_token_id": stop,
            "do_sample": True,
            "eos_token_id": [end, stop],
            "repetition_penalty": 1.05,
            "temperature": 1e-6,
        },
        "preprocessor_config.json": {
            "min_pixels": 3136,
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


def _save_weights(folder: Path, shapes: dict[str, Tensor], device: str, *, tied: bool) -> None:
    draw = torch.Generator(device).manual_seed(0)
    shard: dict[str, Tensor] = {}
    places: dict[str, str] = {}

    def flush() -> None:
        name = f"model-{len(set(places.values())):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, weight in shapes.items():
        if tied and name == "lm_head.weight":
            continue
        shard[_published(name)] = _random(name, weight, draw, device).to("cpu", torch.bfloat16).contiguous()
        if sum(each.nbytes for each in shard.values()) > _SHARD_BYTES:
            flush()
    flush()
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")


def _published(name: str) -> str:
    return next((old + name.removeprefix(new) for new, old in _PUBLISHED_AS.items() if name.startswith(new)), name)


def _random(name: str, weight: Tensor, draw: torch.Generator, device: str) -> Tensor:
    """Draw a weight so that activations keep their size."""
    if weight.ndim == 1:
        return torch.full(weight.shape, 0.0 if name.endswith("bias") else 1.0, device=device)
    return torch.randn(weight.shape, device=device, generator=draw) * (1.6 / weight[0].numel() ** 0.5)
