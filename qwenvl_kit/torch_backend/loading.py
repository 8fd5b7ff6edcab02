"""Load a checkpoint's weights with transformers, and replace layers by faster equal ones.

Weights are never twice in memory. transformers maps files into memory where tensors keep their stored dtype. A model
that is packed in float32 is loaded so, and then converted and packed layer by layer. When transformers converted it,
loading the 3B took 20.6 GB, for 15.0 GB of weights in float32.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration

from qwenvl_kit.checkpoints.library_errors import named_errors
from qwenvl_kit.checkpoints.loading import load_config, stored_dtype
from qwenvl_kit.checkpoints.lora import FoldedWeights
from qwenvl_kit.checkpoints.preflight import refuse_gaps
from qwenvl_kit.checkpoints.weight_files import AGAIN, weight_files
from qwenvl_kit.inference.cancellation import bound_advance, stage
from qwenvl_kit.torch_backend.onednn.linear import can_prepack, has_onednn
from qwenvl_kit.torch_backend.onednn.text import prepack_text
from qwenvl_kit.torch_backend.onednn.vision import prepack_vision
from qwenvl_kit.torch_backend.vision import fuse_vision

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.checkpoint import Checkpoint
    from qwenvl_kit.checkpoints.lora import Lora
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.options import ModelOptions


def load_model(
    checkpoint: Checkpoint,
    options: ModelOptions,
    resolved: ResolvedConfig,
    held: contextlib.ExitStack,
    lora: Lora | None = None,
) -> tuple[Any, bool]:
    """Load a model in evaluation mode, on its device and in its dtype.

    Parameters
    ----------
    checkpoint : Checkpoint
        The weights.
    options : ModelOptions
        Its ``device_map`` and ``max_memory``.
    resolved : ResolvedConfig
        Its ``device``, ``dtype``, ``attention`` and ``torch_compile``.
    held : contextlib.ExitStack
        Keeps the folder of offloaded weights until it is closed.
    lora : Lora, optional
        Folded into the weights as they are read.

    Returns
    -------
    model : transformers.Qwen2_5_VLForConditionalGeneration
    is_prepacked : bool
        Linear layers run on oneDNN.

    Raises
    ------
    CheckpointError
        The weights cannot be loaded, or tensors are missing.
    Cancelled
        The run of this thread was cancelled meanwhile.
    """
    dtype: torch.dtype = getattr(torch, resolved.dtype)
    is_plain = options.device_map is None and checkpoint.config.get("quantization_config") is None
    may_pack = is_plain and resolved.device == "cpu" and dtype == torch.float32 and has_onednn()
    # Folded weights are in float32, which a stored dtype would round.
    loaded = stored_dtype(checkpoint) if may_pack and lora is None else dtype
    if is_plain:
        model = _load_watched(checkpoint, resolved, loaded, lora)
    else:
        model = _load_placed(checkpoint, options, resolved, held)
        if getattr(model, "hf_quantizer", None) is None:
            _unify(model, dtype)
    packs = dtype == torch.float32 and can_prepack(model, loaded)
    _optimize(model, packs=packs, compiles=resolved.torch_compile)
    if loaded != dtype:
        _convert(model, dtype)
    return model.eval(), packs


def _load_watched(
    checkpoint: Checkpoint, resolved: ResolvedConfig, dtype: torch.dtype, lora: Lora | None = None
) -> Any:
    """Load from tensors that are read one by one, so that a run can be cancelled meanwhile."""
    folder = checkpoint.path
    # An error of a GPU is not one of the folder.
    is_cpu = resolved.device == "cpu"
    errors = named_errors(folder, "its weights cannot be loaded", AGAIN) if is_cpu else contextlib.nullcontext()
    with errors, _watched_tensors(checkpoint, lora) as tensors:
        model, info = _from_pretrained(
            None, checkpoint, resolved, dtype=dtype, state_dict=tensors, device_map=resolved.device
        )
    refuse_gaps(folder, info)
    return model


def _load_placed(
    checkpoint: Checkpoint, options: ModelOptions, resolved: ResolvedConfig, held: contextlib.ExitStack
) -> Any:
    """Load from the folder, which transformers needs for offloaded and for quantised weights."""
    placed: Any = options.device_map
    offload_folder = None
    if placed is None:
        placed = resolved.device
    else:
        offload_folder = held.enter_context(tempfile.TemporaryDirectory(prefix="qwenvl_kit-offload-"))
    # An error of a device map or a GPU is not one of the folder.
    is_placed = options.device_map is not None or resolved.device != "cpu"
    trouble = named_errors(checkpoint.path, "its weights cannot be loaded", AGAIN)
    with contextlib.nullcontext() if is_placed else trouble:
        model, info = _from_pretrained(
            checkpoint.path,
            checkpoint,
            resolved,
            dtype=getattr(torch, resolved.dtype),
            device_map=dict(placed) if isinstance(placed, Mapping) else placed,
            max_memory=None if options.max_memory is None else dict(options.max_memory),
            offload_folder=offload_folder,
            use_safetensors=True,
            local_files_only=True,
        )
    refuse_gaps(checkpoint.path, info)
    return model


def _from_pretrained(folder: Any, checkpoint: Checkpoint, resolved: ResolvedConfig, **options: Any) -> tuple[Any, Any]:
    """Load with a given attention, so that transformers looks for no kernel on the hub."""
    loaded: tuple[Any, Any] = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder,
        config=load_config(checkpoint),
        attn_implementation=resolved.attention,
        generation_config=GenerationConfig(),
        output_loading_info=True,
        **options,
    )
    return loaded


class _FoldedTensor:
    """A tensor of a file, with the change of an adapter."""

    def __init__(self, name: str, tensor: Any, weights: FoldedWeights) -> None:
        self._name, self._tensor, self._weights = name, tensor, weights

    def __getitem__(self, at: Any) -> Any:
        return self._weights.fold(self._name, self._tensor[:])[at]


class _WatchedTensor:
    """A tensor of a file, read when transformers indexes it."""

    def __init__(self, tensor: Any, advance: Callable[[], None]) -> None:
        self._tensor, self._advance = tensor, advance

    def __getitem__(self, at: Any) -> Any:
        self._advance()
        return self._tensor[at]


@contextlib.contextmanager
def _watched_tensors(checkpoint: Checkpoint, lora: Lora | None = None) -> Iterator[dict[str, _WatchedTensor]]:
    """Yield the tensors of a checkpoint by name; each counts as a step of the run's stage once it is read."""
    with contextlib.ExitStack() as opened:
        files = [
            opened.enter_context(safe_open(file, framework="pt"))
            for file in weight_files(checkpoint.path, checkpoint.config)
        ]
        named = {name: file for file in files for name in file.keys()}  # noqa: SIM118  # no mapping
        with stage("load", len(named)):
            advance = bound_advance()
            tensors: dict[str, Any] = {name: file.get_slice(name) for name, file in named.items()}
            if lora is not None:
                weights = FoldedWeights(lora)
                changed = {name: one for name, one in tensors.items() if weights.changes(name)}
                tensors |= {name: _FoldedTensor(name, one, weights) for name, one in changed.items()}
            yield {name: _WatchedTensor(tensor, advance) for name, tensor in tensors.items()}


def _optimize(model: Any, *, packs: bool, compiles: bool) -> None:
    """Replace layers by faster equal ones.

    torch compiles plain layers only: prepacked weights are opaque to it.
    """
    visual, text = model.model.visual, model.model.language_model
    if not packs:
        fuse_vision(visual)
        return
    with stage("load", len(visual.blocks) + (0 if compiles else len(text.layers))):
        prepack_vision(visual)
        if not compiles:
            prepack_text(text)


def _unify(model: Any, dtype: torch.dtype) -> None:
    """Convert weights in another dtype: transformers 5.17 makes bfloat16 of FP8, whatever dtype was asked for."""
    for weight in model.parameters():
        if weight.is_floating_point() and weight.dtype != dtype and weight.device.type != "meta":
            weight.data = weight.data.to(dtype)


def _convert(model: Any, dtype: torch.dtype) -> None:
    """Convert the weights that are left, tensor by tensor, and what the configs say of them."""
    model.to(dtype)
    for config in (model.config, model.config.text_config, model.config.vision_config):
        config.dtype = dtype
