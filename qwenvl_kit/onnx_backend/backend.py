"""The ONNX Runtime backend: an export behind the same decode loop as torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qwenvl_kit.checkpoints.capabilities import Capabilities, Device, FixedOption
from qwenvl_kit.checkpoints.checkpoint import find, read
from qwenvl_kit.checkpoints.locate import locate
from qwenvl_kit.checkpoints.resolve import ResolvedConfig, resolve
from qwenvl_kit.errors import CheckpointError, ConfigError
from qwenvl_kit.onnx_backend.manifest import Export, is_export, read_export
from qwenvl_kit.onnx_backend.require import require_onnx
from qwenvl_kit.types import PatchGeometry, Result

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.checkpoint import Checkpoint
    from qwenvl_kit.inference.backend import RequestQueue, RunControl
    from qwenvl_kit.options import Config


@dataclass(frozen=True, slots=True)
class OnnxSpec:
    """An export and its resolved options, before any weight is read."""

    export: Export
    device: Device
    rank: int
    resolved: ResolvedConfig
    geometry: PatchGeometry

    @property
    def fingerprint(self) -> str:
        """Digest of graphs, weights and execution provider."""
        return self.resolved.fingerprint

    @property
    def identity(self) -> str:
        """Equal for configs that can share one loaded model."""
        return f"onnx:{self.export.path}:{self.fingerprint}:{self.resolved.device}:{self.resolved.threads}"

    @property
    def checkpoint(self) -> Checkpoint:
        """The configs of the model."""
        return read(self.export.path, weights="*.onnx")

    def load(self, control: RunControl | None = None) -> OnnxBackend:
        """Read the weights and return the backend."""
        return OnnxBackend(self)


class OnnxBackend:
    """A loaded export.

    Parameters
    ----------
    spec : OnnxSpec
        The export and its options.
    """

    def __init__(self, spec: OnnxSpec) -> None:
        from qwenvl_kit.checkpoints.footprint import kv_bytes_per_token
        from qwenvl_kit.checkpoints.loading import load_processor
        from qwenvl_kit.inference.cache_memory import CacheMemory
        from qwenvl_kit.inference.encoder_cache import EncoderCache
        from qwenvl_kit.inference.preflight import check_export
        from qwenvl_kit.inference.processor import Tokenization
        from qwenvl_kit.onnx_backend.model_runner import OnnxModelRunner

        checkpoint = read(spec.export.path, weights="*.onnx")
        processor = load_processor(checkpoint)
        assert spec.resolved.provider is not None, "set by spec()"
        self.model_runner = OnnxModelRunner(
            spec.export, provider=spec.resolved.provider, rank=spec.rank, threads=spec.resolved.threads
        )
        tokens = check_export(checkpoint)
        self.tokenization = Tokenization.of(processor, checkpoint, eos_ids=tokens.eos_ids, vocab_size=tokens.vocab_size)
        self.encoder_cache = EncoderCache(self.model_runner, self.tokenization.processor.patchify)
        self._cache_memory = CacheMemory(
            kv_bytes_per_token(checkpoint.config, str(self.model_runner.dtype).removeprefix("torch.")),
            {self.model_runner.device: 1},
        )

    def generate(self, queue: RequestQueue, resolved: ResolvedConfig, control: RunControl) -> Iterator[Result]:
        """Answer what the queue gives."""
        from qwenvl_kit.inference.engine import generate

        yield from generate(
            self.model_runner, self.encoder_cache, self.tokenization, queue, resolved, control, self._cache_memory
        )

    def close(self) -> None:
        """Free the model."""
        self.encoder_cache.clear()
        self.model_runner.close()


def spec(config: Config) -> OnnxSpec:
    """Find the export of a config.

    Raises
    ------
    MissingExtra
        ONNX Runtime is not installed.
    ConfigError
        The caller passed an option that an export does not support.
    ModelNotFound, CheckpointError
        There is no export, or it is partial, altered or of another format.
    """
    require_onnx("backend='onnx'")
    from qwenvl_kit.checkpoints.generation_config import defaults_of
    from qwenvl_kit.inference.preflight import check_export
    from qwenvl_kit.onnx_backend.int8_support import require_exact_products
    from qwenvl_kit.onnx_backend.session import execution_provider

    folder = locate(config.model)
    if not is_export(folder):
        find(config.model)  # raises if it is no checkpoint either
        raise CheckpointError(
            f"model_name={config.model_name!r} is a checkpoint, not an ONNX export. Run qwenvl-kit export "
            f"{config.model_name} OUT, and pass model_name='OUT'."
        )
    export = read_export(folder)
    checkpoint = read(folder, weights="*.onnx")
    require_exact_products(export)
    check_export(checkpoint)
    provider = execution_provider()
    device = _device(config, provider)
    planned = resolve(config, device, defaults_of(checkpoint, config), capabilities_of(export))
    fingerprint = hashlib.blake2b(f"onnx:{export.digest}:{provider}".encode(), digest_size=16).hexdigest()
    resolved = replace(planned, fingerprint=fingerprint, quantization=export.quantize, provider=provider)
    return OnnxSpec(export, device, config.rank or 0, resolved, checkpoint.geometry)


def capabilities_of(export: Export) -> Capabilities:
    """Return what ONNX Runtime can do with an export."""
    return Capabilities(
        attention="GroupQueryAttention",
        fixed=(
            FixedOption(
                option="num_beams",
                value=1,
                reason="backend='onnx' does not support beam search",
                instead="using greedy search",
                remedy="Use num_beams=1, backend='torch', or the generate method of qwenvl_kit.export.OnnxQwenVL.",
            ),
            FixedOption(
                option="adapter",
                value=None,
                reason="backend='onnx' runs exported weights",
                instead="running the export as it is",
                remedy="Use backend='torch', or export the model with the adapter: to_onnx(…, adapter=…).",
            ),
            FixedOption(
                option="device_map",
                value=None,
                reason="backend='onnx' keeps a model on one device",
                instead="using one device",
                remedy="Leave device_map out, or use backend='torch'.",
            ),
            FixedOption(
                option="torch_compile",
                value=False,
                reason="backend='onnx' runs exported graphs",
                instead="running the graphs as they are",
            ),
            FixedOption(
                option="dtype",
                value=export.dtype,
                reason=f"{export.path} is an export in {export.dtype}",
                instead=f"using {export.dtype}",
                remedy="Leave dtype out, or export the checkpoint with this dtype.",
            ),
        ),
    )


def _device(config: Config, provider: str) -> Device:
    if provider.startswith("CUDA"):
        from qwenvl_kit.checkpoints.devices import find_device

        return find_device(config.model)
    if config.rank is not None:
        raise ConfigError(
            f"rank={config.rank} needs a GPU, and ONNX Runtime has {provider} only. Pass rank=None, or install "
            "onnxruntime-gpu on a machine with a GPU."
        )
    return Device("cpu")
