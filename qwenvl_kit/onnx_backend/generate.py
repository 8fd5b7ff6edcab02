"""An export as a model of transformers, with its ``generate``, on ONNX Runtime."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from optimum.modeling_base import OptimizedModel
from transformers import GenerationConfig, Qwen2_5_VLForConditionalGeneration, modeling_outputs

from qwenvl_kit._warnings import warn
from qwenvl_kit.checkpoints.checkpoint import read
from qwenvl_kit.checkpoints.library_errors import named_errors
from qwenvl_kit.checkpoints.loading import load_config, load_processor
from qwenvl_kit.checkpoints.weight_files import is_plain_name
from qwenvl_kit.errors import CheckpointError
from qwenvl_kit.inference.model_runner import PrefillChunk
from qwenvl_kit.onnx_backend.int8_support import require_exact_products
from qwenvl_kit.onnx_backend.manifest import MANIFEST, Export, read_export
from qwenvl_kit.onnx_backend.model_runner import OnnxModelRunner
from qwenvl_kit.onnx_backend.session import execution_provider

if TYPE_CHECKING:
    from torch import Tensor

# ``generate`` hands the cache over under the name that the class's forward has for it, which changed with 5.24.
_CACHE = "cache" if "cache" in signature(Qwen2_5_VLForConditionalGeneration.forward).parameters else "past_key_values"
_Output: Any = getattr(modeling_outputs, "MultimodalCausalLMOutputWithPast", modeling_outputs.CausalLMOutputWithPast)


class OnnxQwenVL(OptimizedModel):  # type: ignore[misc]  # optimum is untyped
    """A Qwen2.5-VL on ONNX Runtime with the interface of transformers.

    Attributes
    ----------
    model_runner : OnnxModelRunner
        Prefill and decode step as separate functions.
    processor : transformers.Qwen2_5_VLProcessor
        The checkpoint's.
    generation_config : transformers.GenerationConfig
        The checkpoint's.

    Examples
    --------
    >>> model = OnnxQwenVL.from_pretrained("qwen-onnx")  # doctest: +SKIP
    >>> inputs = model.processor(images=image, text=prompt, return_tensors="pt")  # doctest: +SKIP
    >>> ids = model.generate(**inputs, max_new_tokens=64)  # doctest: +SKIP
    """

    main_input_name = "input_ids"

    def __init__(self, export: Export, config: Any, *, provider: str | None = None, threads: int | None = None) -> None:
        require_exact_products(export)
        self.model_runner = OnnxModelRunner(export, provider=provider or execution_provider(), threads=threads)
        self.export = export
        self.processor: Any = load_processor(read(export.path, weights="*.onnx"))
        super().__init__(_GenerationAdapter(config, self.model_runner), config)
        if (export.path / "generation_config.json").is_file():
            trouble, fix = "its generation_config.json cannot be used", "Correct it, or export the checkpoint again"
            with named_errors(export.path, trouble, fix):
                self.generation_config = GenerationConfig.from_pretrained(export.path, local_files_only=True)

    @property
    def generation_config(self) -> GenerationConfig:
        """Defaults of ``generate``."""
        return self.model.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        self.model.generation_config = value

    @property
    def device(self) -> torch.device:
        """Device of the inputs."""
        return self.model_runner.device

    @property
    def stepper(self) -> OnnxModelRunner:
        """Return `model_runner` under its former name."""
        warn("OnnxQwenVL.stepper is now model_runner.", DeprecationWarning)
        return self.model_runner

    @classmethod
    def _from_pretrained(cls, model_id: str | Path, config: Any, **kwargs: Any) -> OnnxQwenVL:
        """Load an export from its folder, with optional ``provider`` and ``threads``.

        Raises
        ------
        CheckpointError
            The folder is not an export, or a partial or altered one.
        """
        chosen = {name: kwargs[name] for name in ("provider", "threads") if name in kwargs}
        return cls(read_export(Path(model_id)), config, **chosen)

    @classmethod
    def from_pretrained(cls, model_id: str | Path, config: Any = None, **kwargs: Any) -> OnnxQwenVL:
        """Load an export.

        Parameters
        ----------
        model_id : path
            A folder that `qwenvl_kit.export.to_onnx` wrote.
        config : transformers.PretrainedConfig, optional
            Replaces the folder's.
        **kwargs
            ``provider``: the execution provider; ``threads``: the number of threads of one operator.

        Raises
        ------
        CheckpointError
            The folder is not an export, or a partial or altered one.
        """
        # optimum's own method asks the hub for the folder's contents; an export's manifest has them, offline.
        export = read_export(Path(model_id))
        own = load_config(read(export.path, weights="*.onnx")) if config is None else config
        return cls._from_pretrained(export.path, own, **kwargs)

    def forward(self, **inputs: Any) -> Any:
        """Return logits (B, 1, V) of each row's last token, and the cache of the next step."""
        return self.model(**inputs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as `transformers.GenerationMixin.generate` does, with all its options."""
        return self.model.generate(*args, **kwargs)

    def can_generate(self) -> bool:
        """Return True: there is a ``generate``."""
        return True

    def _save_config(self, save_directory: str | Path) -> None:
        """Save nothing; `_save_pretrained` copies the config with the other files."""

    def _save_pretrained(self, save_directory: str | Path) -> None:
        """Copy the export, the manifest last, so that an interrupted copy is recognised."""
        for name in (*self.export.manifest["files"], MANIFEST):
            if not is_plain_name(name):
                raise CheckpointError(
                    f"{self.export.path / MANIFEST} names {name!r}, which is not a plain file name. Export again."
                )
            copy = Path(save_directory) / name
            if copy.is_symlink():  # what it points to stays as it is
                copy.unlink()
            shutil.copyfile(self.export.path / name, copy)


class _Slots:
    """Cache object of ``generate``: the lengths of the rows in the model runner's slots."""

    is_compileable = False
    is_linear = (False,)

    def __init__(self, model_runner: OnnxModelRunner, capacity: int) -> None:
        self.capacity = capacity
        self.lengths: Tensor = torch.zeros(0, dtype=torch.int64)
        self.n_passed = 0  # tokens of the padded batch, which is what transformers counts in
        self._model_runner = model_runner

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens passed so far, padding included."""
        return self.n_passed

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace the slots of dropped beams by those of the chosen ones."""
        self._model_runner.reorder(beam_idx)
        self.lengths = self.lengths[beam_idx.cpu()]


class _GenerationAdapter(Qwen2_5_VLForConditionalGeneration):  # type: ignore[misc]
    """transformers' class without weights: it prepares inputs and positions; the model runner computes logits."""

    _model_runner: OnnxModelRunner

    def __init__(self, config: Any, model_runner: OnnxModelRunner) -> None:
        config._attn_implementation = "sdpa"  # a kernel that a config names on the hub is never asked for
        with torch.device("meta"):
            super().__init__(config)
        object.__setattr__(self, "_model_runner", model_runner)  # no module: nothing to be registered

    @property
    def device(self) -> torch.device:
        device: torch.device = self._model_runner.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._model_runner.dtype
        return dtype

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        longest = kwargs.get("max_cache_length", args[-1] if args else 0)
        model_kwargs[_CACHE] = _Slots(self._model_runner, int(longest) + 1)

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        """Repeat rows for beams, but not patches: each image is encoded once."""
        apart = {name: kwargs.pop(name, None) for name in ("pixel_values", "image_grid_thw")}
        input_ids, expanded = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)
        return input_ids, {**expanded, **apart, "rows_per_prompt": expand_size}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        logits_to_keep: int = 1,
        cache: _Slots | None = None,
        past_key_values: _Slots | None = None,
        rows_per_prompt: int = 1,
        **kwargs: Any,
    ) -> Any:
        cache = past_key_values if cache is None else cache
        n_rows, n_new = input_ids.shape
        slots = _Slots(self._model_runner, n_new + 1) if cache is None else cache
        if not len(slots.lengths):
            slots.lengths = torch.zeros(n_rows, dtype=torch.int64)
            self._model_runner.resize_cache(n_rows, max(slots.capacity, n_new + 1))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if position_ids is None:
            positions, _ = self.model.get_rope_index(
                input_ids, mm_token_type_ids, image_grid_thw=image_grid_thw, attention_mask=mask
            )
        else:
            positions = position_ids[-3:]  # the first of four rows counts tokens
        features = None
        if pixel_values is not None and image_grid_thw is not None:
            features = torch.cat(self._model_runner.encode_images(pixel_values, image_grid_thw))
        kept = mask[:, -n_new:].bool()
        visual = _by_row(features, (input_ids == self.config.image_token_id) & kept, rows_per_prompt)
        logits = self._forward(input_ids, kept, positions, visual, slots)
        slots.n_passed += n_new
        return _Output(logits=logits[:, None], **{_CACHE: slots})

    def _forward(
        self, ids: Tensor, kept: Tensor, positions: Tensor, visual: Sequence[Tensor | None], slots: _Slots
    ) -> Tensor:
        """Return logits (B, V); padding is left out, because a slot's tokens start at its front."""
        if ids.shape[1] == 1 and visual[0] is None:
            max_len = int(slots.lengths.max()) + 1
            logits: Tensor = self._model_runner.decode(ids[:, 0], positions[0, :, -1], slots.lengths, max_len)
        else:
            rows = zip(ids, kept, positions.unbind(1), slots.lengths.tolist(), visual, strict=True)
            logits = self._model_runner.prefill(
                [
                    PrefillChunk(slot, tokens[real], places[:, real], past, seen)
                    for slot, (tokens, real, places, past, seen) in enumerate(rows)
                ]
            )
        slots.lengths = slots.lengths + kept.sum(dim=1).cpu()
        return logits


def _by_row(features: Tensor | None, is_visual: Tensor, rows_per_prompt: int) -> Sequence[Tensor | None]:
    """Return the image features of each row; `features` are those of one row per prompt."""
    if features is None:
        return [None] * len(is_visual)
    per_prompt = torch.split(features, is_visual[::rows_per_prompt].sum(dim=1).tolist())
    return [seen for seen in per_prompt for _ in range(rows_per_prompt)]
