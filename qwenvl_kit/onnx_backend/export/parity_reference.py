"""Answers of a checkpoint on torch, in float32 and with transformers' own model, for an export to be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

from qwenvl_kit.checkpoints.checkpoint import Checkpoint, find, read
from qwenvl_kit.checkpoints.loading import load_config
from qwenvl_kit.checkpoints.preflight import refuse_gaps
from qwenvl_kit.inference.preflight import check_checkpoint
from qwenvl_kit.onnx_backend.export.parity_rows import model_inputs
from qwenvl_kit.options import Config

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.onnx_backend.export.parity_rows import CompareRow


@dataclass(slots=True, eq=False)
class Reference:
    """torch's answer to a row: logits (n_tokens, V) and the tokens of the highest ones."""

    logits: Tensor
    tokens: Tensor
    prompt_tokens: int


def references(model: str | Path, processor: Any, rows: Sequence[CompareRow], n_tokens: int) -> list[Reference]:
    """Return torch's answer to each row; the model is freed.

    Parameters
    ----------
    model : str or path
        A checkpoint's folder, or ``demo``.
    processor : transformers.Qwen2_5_VLProcessor
        The export's.
    rows : sequence of CompareRow
        The rows.
    n_tokens : int
        Steps of each row; end tokens do not stop it.

    Raises
    ------
    CheckpointError
        There is no usable checkpoint.
    """
    loaded = _load(_checkpoint(model))
    config = greedy(n_tokens)
    config.output_logits = config.return_dict_in_generate = True
    answers = []
    for row in rows:
        inputs = model_inputs(processor, [row])
        made = loaded.generate(**inputs, generation_config=config)
        n_prompt = inputs["input_ids"].shape[1]
        answers.append(Reference(torch.cat(made.logits).float(), made.sequences[0, n_prompt:], n_prompt))
    return answers


def greedy(n_tokens: int) -> GenerationConfig:
    """Return the config of a greedy search for `n_tokens` tokens, which no end token stops."""
    return GenerationConfig(do_sample=False, max_new_tokens=n_tokens, eos_token_id=None, pad_token_id=0)


def _checkpoint(model: str | Path) -> Checkpoint:
    """Return a checkpoint that passed its checks."""
    folder = Path(model).expanduser()
    checkpoint = read(folder) if folder.is_dir() else find(Config(model_name=str(model)))
    check_checkpoint(checkpoint)
    return checkpoint


def _load(checkpoint: Checkpoint) -> Any:
    """Load as the torch backend does: no pickles, no attention kernel that a config names on the hub."""
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        checkpoint.path,
        config=load_config(checkpoint),
        dtype=torch.float32,
        attn_implementation="sdpa",
        generation_config=GenerationConfig(),  # the checkpoint's own penalties would hide the logits
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    refuse_gaps(checkpoint.path, info)
    return model.eval()
