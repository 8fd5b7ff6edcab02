"""Random checkpoints laid out like the published ones, and the loop of the published model card.

The layout is that of `published_layout`, with chat_template.json and bfloat16 weights in two shards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from helpers.published_layout import published_configs, published_name
from PIL import Image
from qwen_vl_utils import process_vision_info
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration

from qwenvl_kit.demo.training.tokenizer import CHAT_TEMPLATE, build_tokenizer

_SPREAD = 4.0  # weights at their initial scale repeat one token; these give different answers


def make_published(
    folder: Path,
    *,
    vocab_size: int = 2048,
    hidden: int = 64,
    layers: int = 3,
    tied: bool = False,
    seed: int = 0,
    min_pixels: int = 3136,
    max_pixels: int = 40_000,
    context: int = 4096,
    head_scale: float = 1.0,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    write_tokenizer: Callable[[Path], dict[str, int]] | None = None,
) -> Path:
    """Write a random checkpoint in the published layout to `folder` and return it.

    `text` and `vision` replace single fields of config.json and of its ``vision_config``. `write_tokenizer` writes
    another tokenizer than the embedded model's and returns the ids of its added tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = (write_tokenizer or _write_tokenizer)(folder)
    _write(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": context,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
        "vocab_size": vocab_size,
    }
    tower = {
        "depth": 4,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_heads": 4,
        "fullatt_block_indexes": [1, 3],
    }
    configs = published_configs(
        ids,
        text={**sizes, **(text or {})},
        vision={**tower, **(vision or {})},
        min_pixels=min_pixels,
        max_pixels=max_pixels,
    )
    for name, content in configs.items():
        _write(folder / name, content)
    _save_weights(folder, seed, head_scale)
    return folder


def quantize_fp8(folder: Path) -> None:
    """Quantise the layers of the text model in a checkpoint's files, in blocks of 128 × 128."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for shard in sorted(set(index["weight_map"].values())):
        weights = load_file(folder / shard)
        for name in [name for name in weights if name.startswith("model.layers") and name.endswith("proj.weight")]:
            weights[name], weights[f"{name}_scale_inv"] = _in_fp8(weights[name])
            index["weight_map"][f"{name}_scale_inv"] = shard
        save_file(weights, folder / shard, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["visual", "lm_head"],
    }
    _write(folder / "model.safetensors.index.json", index)
    _write(folder / "config.json", config)


def card_loop(
    folder: Path, pictures: Sequence[Image.Image], prompts: Sequence[str], *, max_new_tokens: int, start_with: str = ""
) -> list[str]:
    """Answer one picture after the other as the model card of Qwen2.5-VL does it, in float32 and greedily.

    With `start_with`, each answer is that text, which the template leaves open, and its continuation.
    """
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    ).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    size = processor.image_processor.size
    answers: list[str] = []
    for picture, prompt in zip(pictures, prompts, strict=True):
        image = {
            "type": "image",
            "image": picture,
            "min_pixels": size["shortest_edge"],
            "max_pixels": size["longest_edge"],
        }
        messages = [{"role": "user", "content": [image, {"type": "text", "text": prompt}]}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if start_with:
            begun = [*messages, {"role": "assistant", "content": [{"type": "text", "text": start_with}]}]
            text = processor.apply_chat_template(begun, tokenize=False, continue_final_message=True)
        image_inputs, _ = process_vision_info(messages)
        inputs = processor(text=[text], images=image_inputs, padding=True, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = ids[:, inputs.input_ids.shape[1] :]
        decoded = processor.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        answers += [start_with + text for text in decoded]
    return answers


def _write_tokenizer(folder: Path) -> dict[str, int]:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_added_vocab()}


def _save_weights(folder: Path, seed: int, head_scale: float) -> None:
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(folder))
    model.lm_head.weight.data *= head_scale
    tied = model.config.tie_word_embeddings
    weights = {
        published_name(name): (weight * _SPREAD if weight.ndim >= 2 else weight).to(torch.bfloat16).contiguous()
        for name, weight in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, folder / shard, metadata={"format": "pt"})
    size = sum(weight.nbytes for weight in weights.values())
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def _in_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight (R, C) in float8, and the factors of its blocks."""
    rows, columns = (-(-n // 128) for n in weight.shape)
    padded = torch.zeros(rows * 128, columns * 128)
    padded[: weight.shape[0], : weight.shape[1]] = weight.float()
    blocks = padded.view(rows, 128, columns, 128)
    factors = blocks.abs().amax((1, 3)).clamp(min=1e-6) / 448
    quantized = (blocks / factors[:, None, :, None]).view_as(padded)[: weight.shape[0], : weight.shape[1]]
    return quantized.to(torch.float8_e4m3fn).contiguous(), factors


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")
