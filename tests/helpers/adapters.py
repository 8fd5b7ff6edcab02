"""LoRA adapters in peft's layout, made without peft, and a plain merge to which folding is held equal."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

MODULES = (  # as transformers 5 names them; checkpoints have the names of their authors
    "model.language_model.layers.0.self_attn.q_proj",
    "model.language_model.layers.1.mlp.down_proj",
    "model.visual.blocks.0.attn.qkv",
    "model.visual.merger.mlp.2",
)


def stored_name(checkpoint: Path, module: str) -> str:
    """Return the name of a module's weight in a checkpoint's files."""
    names = {name for file in checkpoint.glob("*.safetensors") for name in load_file(file)}
    plain = module.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
    return next(name for name in (f"{module}.weight", f"{plain}.weight") if name in names)


def make_adapter(
    folder: Path,
    checkpoint: Path,
    *,
    modules: Sequence[str] = MODULES,
    rank: int = 4,
    ranks: Mapping[str, int] | None = None,
    saved: Mapping[str, torch.Tensor] | None = None,
    spread: float = 0.3,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Write a random adapter of these modules; `ranks` gives some modules another rank, `saved` whole weights."""
    weights = {name: one for file in checkpoint.glob("*.safetensors") for name, one in load_file(file).items()}
    random = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for module in modules:
        n, k = weights[stored_name(checkpoint, module)].shape
        r = (ranks or {}).get(module, rank)
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(r, k, generator=random) * spread
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(n, r, generator=random) * spread
    for module, weight in (saved or {}).items():
        tensors[f"base_model.model.{module}.weight"] = weight
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    given = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "base", **given}))
    return folder


def merged(checkpoint: Path, adapter: Path, out: Path, *, alphas: Mapping[str, float], root: bool = False) -> Path:
    """Copy a checkpoint in float32 with each product added to its weight; `alphas` are those of the modules."""
    shutil.copytree(checkpoint, out)
    changes = load_file(adapter / "adapter_model.safetensors")
    for file in out.glob("*.safetensors"):
        weights = {name: weight.float() for name, weight in load_file(file).items()}
        for module, alpha in alphas.items():
            name, down = stored_name(checkpoint, module), changes[f"base_model.model.{module}.lora_A.weight"]
            if name in weights:
                rank = len(down)
                scale = alpha / (math.sqrt(rank) if root else rank)
                weights[name] += scale * (changes[f"base_model.model.{module}.lora_B.weight"] @ down)
        save_file(weights, file, metadata={"format": "pt"})
    return out
