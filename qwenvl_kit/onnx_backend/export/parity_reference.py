"""Answers of a checkpoint on torch, in float32 and with transformers' own model, for an export to be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

from qwenvl_kit.checkpoints.checkpoint import Checkpoint, find, read
from qwenvl_kit.checkpoints.loading import load_config, stored_dtype
from qwenvl_kit.checkpoints.lora import FoldedWeights, Lora, find_lora
from qwenvl_kit.checkpoints.preflight import refuse_gaps
from qwenvl_kit.inference.preflight import check_checkpoint
from qwenvl_kit.onnx_backend.export.parity_rows import model_inputs
from qwenvl_kit.options import Config

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.onnx_backend.export.parity_rows import CompareRow


def references(
    model: str | Path,
    processor: Any,
    rows: Sequence[CompareRow],
    tokens: Sequence[Tensor],
    adapter: str | None = None,
) -> list[Tensor]:
    """Return torch's logits (T, V) at each step of each row; the model is freed.

    Parameters
    ----------
    model : str or path
        A checkpoint's folder, or ``demo``.
    processor : transformers.Qwen2_5_VLProcessor
        The export's.
    rows : sequence of CompareRow
        The rows.
    tokens : sequence of int64 Tensor (T,)
        What each row continues with. One pass over all of them gives the logits of every step.
    adapter : str, optional
        A LoRA adapter that is folded into the weights.

    Raises
    ------
    CheckpointError
        There is no usable checkpoint.
    """
    checkpoint = _checkpoint(model)
    loaded = _load(checkpoint, find_lora(checkpoint, Config(adapter=adapter)))
    found = []
    for row, chosen in zip(rows, tokens, strict=True):
        inputs = model_inputs(processor, [row])
        more = chosen[None, :-1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(more)], dim=1)
        found.append(loaded(**inputs, logits_to_keep=len(chosen), use_cache=False).logits[0].float())
    return found


def greedy(n_tokens: int) -> GenerationConfig:
    """Return the config of a greedy search for `n_tokens` tokens, which no end token stops."""
    return GenerationConfig(do_sample=False, max_new_tokens=n_tokens, eos_token_id=None, pad_token_id=0)


def _checkpoint(model: str | Path) -> Checkpoint:
    """Return a checkpoint that passed its checks."""
    folder = Path(model).expanduser()
    checkpoint = read(folder) if folder.is_dir() else find(Config(model_name=str(model)))
    check_checkpoint(checkpoint)
    return checkpoint


def _load(checkpoint: Checkpoint, lora: Lora | None = None) -> Any:
    """Load as the torch backend does: no pickles, no attention kernel that a config names on the hub.

    Text layers stay in their stored dtype, mapped from the files, and each is in float32 only while it runs. So a 3B
    takes 5 GB instead of 15.
    """
    stored = stored_dtype(checkpoint)
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        checkpoint.path,
        config=load_config(checkpoint),
        dtype=stored,
        attn_implementation="sdpa",
        generation_config=GenerationConfig(),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    refuse_gaps(checkpoint.path, info)
    if lora is not None:
        folded = FoldedWeights(lora)
        for name, weight in model.named_parameters():
            weight.data = folded.fold(name, weight.data)
    if stored != torch.float32:
        text = model.model.language_model
        model.model.visual.float()
        text.norm.float()
        text.embed_tokens.register_forward_hook(lambda _module, _inputs, states: states.float())
        for module in (*text.layers, model.lm_head):
            module.register_forward_pre_hook(_to_float32)
            module.register_forward_hook(_to_stored)
    return model.eval()


def _to_float32(module: Any, _inputs: Any) -> None:
    module.stored = {name: weight.data for name, weight in module.named_parameters()}
    for weight in module.parameters():
        weight.data = weight.data.float()


def _to_stored(module: Any, _inputs: Any, _states: Any) -> None:
    for name, weight in module.named_parameters():
        weight.data = module.stored[name]
    del module.stored
