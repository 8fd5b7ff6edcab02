"""Random checkpoints of the published shapes, in the published layout, made on the device that runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from helpers.published_layout import published_configs, published_name
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

from qwenvl_kit.demo.training.tokenizer import build_tokenizer

_TOWER = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_SHORT_TOWER = {**_TOWER, "depth": 8, "fullatt_block_indexes": [7]}
_7B = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
}
_3B = {
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11008,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # text model and vision tower
    "7b": (_7B, _TOWER),
    "3b": (_3B, _TOWER),
    "7b-thin": ({**_7B, "num_hidden_layers": 4}, _SHORT_TOWER),
    "tiny": (
        {**_7B, "hidden_size": 448, "num_hidden_layers": 4, "intermediate_size": 256, "vocab_size": 2048},
        {**_SHORT_TOWER, "hidden_size": 160, "intermediate_size": 128, "num_heads": 2},
    ),
}
_SHARD_BYTES = 4 * 2**30


def make_checkpoint(folder: Path, shape: str, *, device: str, max_pixels: int) -> Path:
    """Write a random checkpoint; a 7B takes 16.6 GB, a 3B 7.5 GB."""
    folder.mkdir(parents=True)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_added_vocab()}
    text, vision = SHAPES[shape]
    for name, content in published_configs(ids, text=text, vision=vision, max_pixels=max_pixels).items():
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(folder))
    _save_weights(folder, model.state_dict(), device, tied=bool(text.get("tie_word_embeddings")))
    return folder


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
        shard[published_name(name)] = _random(name, weight, draw, device).to("cpu", torch.bfloat16).contiguous()
        if sum(each.nbytes for each in shard.values()) > _SHARD_BYTES:
            flush()
    flush()
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")


def _random(name: str, weight: Tensor, draw: torch.Generator, device: str) -> Tensor:
    """Draw a weight so that activations keep their size."""
    if weight.ndim == 1:
        return torch.full(weight.shape, 0.0 if name.endswith("bias") else 1.0, device=device)
    return torch.randn(weight.shape, device=device, generator=draw) * (1.6 / weight[0].numel() ** 0.5)
