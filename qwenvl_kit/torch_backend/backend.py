"""Qwen2.5-VL on torch, through transformers and accelerate.

Greedy search and sampling run in `inference.engine`, beam search in transformers' ``generate``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwenvl_kit.checkpoints.checkpoint import find, read
from qwenvl_kit.checkpoints.devices import find_device
from qwenvl_kit.checkpoints.footprint import kv_bytes_per_token
from qwenvl_kit.checkpoints.generation_config import defaults_of
from qwenvl_kit.checkpoints.hf_logging import silence_transformers
from qwenvl_kit.checkpoints.loading import load_processor
from qwenvl_kit.checkpoints.lora import find_lora
from qwenvl_kit.checkpoints.resolve import ResolvedConfig, resolve
from qwenvl_kit.errors import CheckpointError
from qwenvl_kit.inference.cache_memory import CacheMemory
from qwenvl_kit.inference.cancellation import cancellable, check
from qwenvl_kit.inference.encoder_cache import EncoderCache
from qwenvl_kit.inference.engine import generate
from qwenvl_kit.inference.oom import free_memory
from qwenvl_kit.inference.preflight import Tokens, check_checkpoint
from qwenvl_kit.inference.processor import Tokenization
from qwenvl_kit.torch_backend.attention import without_cudnn
from qwenvl_kit.torch_backend.attribution import TorchExplainer
from qwenvl_kit.torch_backend.beam_search import BeamSearch
from qwenvl_kit.torch_backend.loading import load_model
from qwenvl_kit.torch_backend.model_runner import TorchModelRunner
from qwenvl_kit.torch_backend.openmp import num_threads
from qwenvl_kit.torch_backend.vision import uses_flash_kernel
from qwenvl_kit.types import PatchGeometry, Result

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.checkpoint import Checkpoint
    from qwenvl_kit.checkpoints.lora import Lora
    from qwenvl_kit.inference.backend import RequestQueue, RunControl
    from qwenvl_kit.options import Config

_FLASH = "torch's flash kernel"


@dataclass(frozen=True, slots=True)
class TorchSpec:
    """A checkpoint and its resolved options, before any weight is read."""

    folder: Path
    digest: str
    config: Config
    resolved: ResolvedConfig
    geometry: PatchGeometry
    lora: Lora | None = None
    lora_digest: str | None = None

    @property
    def fingerprint(self) -> str:
        """Digest of weights, dtype, attention and whether steps are compiled."""
        return self.resolved.fingerprint

    @property
    def identity(self) -> str:
        """Equal for configs that can share one loaded model."""
        placed = (self.config.device_map, self.config.max_memory)
        return f"torch:{self.folder}:{self.fingerprint}:{self.resolved.device}:{placed}"

    @property
    def checkpoint(self) -> Checkpoint:
        """The configs of the model."""
        return read(self.folder)

    def load(self, control: RunControl | None = None) -> TorchBackend:
        """Read the weights and return the backend; `control` may cancel it."""
        with contextlib.nullcontext() if control is None else cancellable(control):
            return TorchBackend(self)


class TorchBackend:
    """A loaded Qwen2.5-VL.

    Parameters
    ----------
    spec : TorchSpec
        The checkpoint and its options.

    Attributes
    ----------
    model_runner : TorchModelRunner
    encoder_cache : EncoderCache
    tokenization : Tokenization
    """

    def __init__(self, spec: TorchSpec) -> None:
        checkpoint = read(spec.folder)
        with contextlib.ExitStack() as held, silence_transformers():
            processor = load_processor(checkpoint)
            check()  # the published tokenizers take seconds
            self._model, self._is_prepacked = load_model(checkpoint, spec.config.model, spec.resolved, held, spec.lora)
            self._held = held.pop_all()
        self._lora = spec.lora
        self._converted_from = _converted_from(self._model, checkpoint)
        compiles = spec.resolved.torch_compile and not _is_hooked(self._model)
        self.model_runner = TorchModelRunner(self._model, compiles=compiles)
        try:
            tokens = self._checked(spec, checkpoint)
        except BaseException:
            self._free()
            raise
        self.tokenization = Tokenization.of(processor, checkpoint, eos_ids=tokens.eos_ids, vocab_size=tokens.vocab_size)
        patchify = functools.partial(self.tokenization.processor.patchify, device=self.model_runner.device)
        self.encoder_cache = EncoderCache(self.model_runner, patchify)
        self._pad_id = tokens.pad_id
        self._cache_memory = CacheMemory(
            kv_bytes_per_token(checkpoint.config, spec.resolved.dtype), self.model_runner.cache_devices()
        )

    def _checked(self, spec: TorchSpec, checkpoint: Checkpoint) -> Tokens:
        """Check again what is loaded, and return its special tokens."""
        adapter = [] if spec.lora is None else [(spec.lora.path, spec.lora.digest, spec.lora_digest)]
        for folder, now, before in [(spec.folder, read(spec.folder).digest, spec.digest), *adapter]:
            if now != before:
                raise CheckpointError(f"{folder} changed during loading. Retry when no other process writes to it.")
        check()
        tokens = check_checkpoint(checkpoint, device=spec.resolved.device)
        check()
        return tokens

    def generate(self, queue: RequestQueue, resolved: ResolvedConfig, control: RunControl) -> Iterator[Result]:
        """Yield the results of a queue's requests."""
        if places := getattr(self._model, "hf_device_map", None):
            control.note(f"The device map placed modules on {_places(places)}.")
        if resolved.torch_compile and _is_hooked(self._model):
            control.note(
                "torch_compile=True is ignored (the device map moves modules between devices); running in eager mode."
            )
        if self._lora is not None:
            control.note(str(self._lora))
        if self._converted_from:
            control.note(
                f"Weights quantised by {self._converted_from} run in {resolved.dtype}: this device does not compute "
                "with them."
            )
        if self._is_prepacked:
            control.note("Linear layers run on oneDNN with prepacked weights.")
        if self.model_runner.device.type == "cuda":
            control.note("SDPA runs without cuDNN.")
            kernel = _FLASH if uses_flash_kernel(self._model.model.visual) else "SDPA"
            control.note(f"Vision attention runs on {kernel}.")
        with num_threads(resolved.threads), without_cudnn():
            if resolved.num_beams > 1:
                beams = BeamSearch(self._model, self.tokenization, pad_id=self._pad_id, device=self.model_runner.device)
                yield from beams.generate(queue, resolved, control)
            else:
                yield from self._decode(queue, resolved, control)

    def _decode(self, queue: RequestQueue, resolved: ResolvedConfig, control: RunControl) -> Iterator[Result]:
        if self.model_runner.device.type == "cuda":
            fault = self.model_runner.step_kernel_fault
            control.note(f"Decode attention runs on {f'SDPA ({fault})' if fault else _FLASH}.")
        try:
            yield from generate(
                self.model_runner,
                self.encoder_cache,
                self.tokenization,
                queue,
                resolved,
                control,
                self._cache_memory,
                TorchExplainer(self.model_runner, self.encoder_cache, self.tokenization),
            )
        finally:
            for note in self.model_runner.take_notes():
                control.note(note)

    def close(self) -> None:
        """Free the model and its offload folder."""
        self.encoder_cache.clear()
        self._free()

    def _free(self) -> None:
        self.model_runner.close()
        del self._model
        free_memory()
        self._held.close()


def spec(config: Config) -> TorchSpec:
    """Find the checkpoint and the device of a config.

    Raises
    ------
    ConfigError
        ``rank`` names no visible GPU.
    ModelNotFound, CheckpointError
        There is no checkpoint, it is of another model family, or it cannot be run.
    """
    device = find_device(config.model)
    checkpoint = find(config.model)
    check_checkpoint(checkpoint, device=device.name)
    lora = find_lora(checkpoint, config)
    planned = resolve(config, device, defaults_of(checkpoint, config))
    steps = ":compiled" if planned.torch_compile else ""  # whose sums may differ in the last bits
    adapter = None if lora is None else lora.digest
    folded = "" if adapter is None else f":{adapter}"
    fingerprint = hashlib.blake2b(
        f"{checkpoint.digest}:{planned.dtype}:{planned.attention}{steps}{folded}".encode(), digest_size=16
    ).hexdigest()
    resolved = replace(planned, fingerprint=fingerprint)
    return TorchSpec(checkpoint.path, checkpoint.digest, config, resolved, checkpoint.geometry, lora, adapter)


def _is_hooked(model: Any) -> bool:
    """Return whether accelerate moves weights or inputs between devices, which only a loaded model tells."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _converted_from(model: Any, checkpoint: Checkpoint) -> str | None:
    """Return how a checkpoint is quantised whose weights transformers converted while it loaded them."""
    quantization = checkpoint.config.get("quantization_config")
    if quantization is None or getattr(model, "hf_quantizer", None) is not None:
        return None
    return str(quantization["quant_method"])


def _places(device_map: Mapping[str, Any]) -> str:
    """Return how many modules are where, such as ``cpu: 2, disk: 1``."""
    counts = Counter(f"cuda:{place}" if isinstance(place, int) else str(place) for place in device_map.values())
    return ", ".join(f"{place}: {n}" for place, n in counts.items())
