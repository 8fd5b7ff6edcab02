"""Check that a checkpoint's weights suit its config, from the headers of its files, before any number is read.

transformers itself loads the folder, on torch's meta device, which holds no numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

from qwenvl_kit.checkpoints.hf_logging import silence_transformers
from qwenvl_kit.checkpoints.library_errors import first_line, named_errors
from qwenvl_kit.checkpoints.loading import FROM_BASE
from qwenvl_kit.checkpoints.weight_files import AGAIN, TensorHeader, read_headers, weight_files
from qwenvl_kit.errors import CheckpointError

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.checkpoint import Checkpoint


def check_weights(checkpoint: Checkpoint, config: Any, *, device: str) -> None:
    """Check names and shapes of a checkpoint's tensors, or that its quantised weights can be read.

    Parameters
    ----------
    checkpoint : Checkpoint
        What to check.
    config : transformers.Qwen2_5_VLConfig
        Its config.
    device : str
        Where it will run; some packages read quantised weights on CUDA only.

    Raises
    ------
    CheckpointError
        A tensor is missing or has another shape, or the package that reads its quantised weights is missing.
    """
    headers = read_headers(weight_files(checkpoint.path, checkpoint.config))
    quantization = checkpoint.config.get("quantization_config")
    if quantization is None:
        refuse_gaps(checkpoint.path, _loading_report(checkpoint.path, config, headers))
    else:
        _check_quantization(checkpoint.path, quantization, device)


def refuse_gaps(folder: Path, info: dict[str, Any]) -> None:
    """Raise if transformers' loading report lists tensors that the checkpoint lacks, or has in another shape.

    Parameters
    ----------
    folder : Path
        Of the checkpoint.
    info : dict
        ``output_loading_info`` of ``from_pretrained``.

    Raises
    ------
    CheckpointError
        Names a tensor, which transformers would initialise at random.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        others = f" (and have {len(unexpected)} others, such as {unexpected[0]})" if unexpected else ""
        raise CheckpointError(
            f"{folder}: its weights lack {len(missing)} tensors of the model, such as {missing[0]}{others}. The save "
            f"was partial, or a merge renamed tensors. Save the whole model with save_pretrained. {AGAIN}."
        )
    if mismatched := sorted(info["mismatched_keys"], key=str):
        name, stored, wanted = mismatched[0]
        raise CheckpointError(
            f"{folder}: {len(mismatched)} tensors have other shapes than in config.json, such as {name}: "
            f"{tuple(stored)} instead of {tuple(wanted)}. {FROM_BASE.format('the matching config.json')}."
        )
    errors = info.get("error_msgs") or info.get("conversion_errors")
    if errors:
        raise CheckpointError(f"{folder}: its weights cannot be loaded: {first_line(errors)}. {AGAIN}.")


def _loading_report(folder: Path, config: Any, headers: dict[str, TensorHeader]) -> dict[str, Any]:
    """Return transformers' loading report for tensors of these names and shapes."""
    tensors = {name: torch.empty(header.shape, device="meta") for name, header in headers.items()}
    with (
        named_errors(folder, "its weights do not match its config.json", FROM_BASE.format("config.json")),
        silence_transformers(),
    ):
        _, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            device_map={"": "meta"},
            attn_implementation="sdpa",
            generation_config=GenerationConfig(),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    found: dict[str, Any] = info
    return found


def _check_quantization(folder: Path, asked: Any, device: str) -> None:
    """Check with transformers that the package for this quantisation is installed."""
    method = asked.get("quant_method") if isinstance(asked, dict) else asked
    fix = f"Install the package that transformers requires for {method!r}, or use a checkpoint without quantisation"
    with (
        named_errors(folder, f"its weights are quantised by {method!r}, which cannot be read here", fix),
        silence_transformers(),
    ):
        from transformers.quantizers import AutoHfQuantizer

        quantizer = AutoHfQuantizer.from_config(asked, pre_quantized=True)
        quantizer.validate_environment(device_map={"": device})
