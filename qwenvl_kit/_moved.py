"""Import modules under their names of version 0.1, with a DeprecationWarning, until the release after next."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from qwenvl_kit._warnings import warn

_MOVES = {
    "backends": "inference",
    "backends.answers": "inference.outputs",
    "backends.base": "inference.backend",
    "backends.batching": "inference.waiting_queue",
    "backends.checkpoint": "checkpoints.checkpoint",
    "backends.choosing": "inference.sampler",
    "backends.decoding": "inference.scheduler",
    "backends.devices": "checkpoints.devices",
    "backends.echo": "inference.echo",
    "backends.encode": "inference.processor",
    "backends.exports": "onnx_backend.manifest",
    "backends.eyes": "inference.encoder_cache",
    "backends.loadable": "checkpoints.adapters",
    "backends.memory": "inference.oom",
    "backends.onnx": "onnx_backend.backend",
    "backends.onnx_extra": "onnx_backend.require",
    "backends.onnx_graph": "onnx_backend.session",
    "backends.onnx_integers": "onnx_backend.int8_support",
    "backends.onnx_model": "onnx_backend.generate",
    "backends.onnx_stepper": "onnx_backend.model_runner",
    "backends.own_generation": "checkpoints.generation_config",
    "backends.positions": "inference.mrope",
    "backends.preflight": "inference.preflight",
    "backends.quiet": "checkpoints.hf_logging",
    "backends.repetition": "inference.repetition",
    "backends.rows": "inference.sequence",
    "backends.seats": "inference.kv_slots",
    "backends.stepper": "inference.model_runner",
    "backends.steps": "inference.seeded_noise",
    "backends.torch": "torch_backend.backend",
    "backends.torch_beams": "torch_backend.beam_search",
    "backends.torch_cache": "torch_backend.kv_cache",
    "backends.torch_compiled": "torch_backend.compiled_decode",
    "backends.torch_packed": "torch_backend.onednn.linear",
    "backends.torch_stepper": "torch_backend.model_runner",
    "backends.torch_text": "torch_backend.onednn.text",
    "backends.torch_vision": "torch_backend.onednn.vision",
    "backends.weight_files": "checkpoints.weight_files",
    "config": "options",
    "demo._checkpoint": "demo.training.checkpoint",
    "demo._forward": "demo.training.forward",
    "demo._losses": "demo.training.losses",
    "demo._metrics": "demo.training.metrics",
    "demo._muon": "demo.training.muon",
    "demo._pictures": "demo.training.images",
    "demo._rows": "demo.training.rows",
    "demo._tokenizer": "demo.training.tokenizer",
    "demo._trainer": "demo.training.trainer",
    "demo.evaluate": "demo.training.evaluate",
    "demo.gallery": "demo_gallery",
    "demo.train": "demo.training.train",
    "effective": "checkpoints.resolve",
    "engines": "executors",
    "engines.base": "executors.base",
    "engines.cluster": "executors.daft",
    "engines.daft": "executors.las_udf",
    "engines.local": "executors.local",
    "engines.parcels": "executors.serialization",
    "engines.runners": "executors.daft_setup",
    "engines.worker": "executors.daft_worker",
    "export.decoder": "onnx_backend.export.text",
    "export.graph": "onnx_backend.export.graph",
    "export.parity": "onnx_backend.export.parity",
    "export.vision": "onnx_backend.export.vision",
    "export.weights": "onnx_backend.export.weights",
    "export.writing": "onnx_backend.export.exporter",
    "frames": "results",
    "images.addresses": "images.fetch.addresses",
    "images.fetch_cache": "images.fetch.cache",
    "images.files": "images.fetch.files",
    "images.hosts": "images.fetch.ssrf",
    "images.limits": "images.fetch.limits",
    "images.logs": "images.fetch.logs",
    "images.offload": "images.fetch.thread_group",
    "images.patience": "images.fetch.retry",
    "images.row_errors": "images.source_context",
    "images.sources": "images.classify",
    "images.stores": "images.fetch.object_storage",
    "images.tos": "images.fetch.tos",
    "images.web": "images.fetch.http",
    "records": "types",
    "runner": "pipeline",
    "runner.feed": "pipeline.prefetch",
    "runner.host_queues": "pipeline.host_queues",
    "runner.keys": "pipeline.cache_key",
    "runner.ledger": "pipeline.collector",
    "runner.plan": "pipeline.plan",
    "runner.progress": "pipeline.progress",
    "runner.recall": "pipeline.source_index",
    "runner.record": "pipeline.run_record",
    "runner.run": "pipeline.run",
    "runner.threads": "pipeline.threads",
    "show": "contact_sheet",
    "widgets.marks": "compare.diff_html",
}
MODULES = {f"qwenvl_kit.{old}": f"qwenvl_kit.{new}" for old, new in _MOVES.items()}
NAMES = {
    "About": "BatchInfo",
    "Ask": "PromptRef",
    "Beams": "BeamSearch",
    "Chooser": "Sampler",
    "Contact": "ContactSheet",
    "Effective": "ResolvedConfig",
    "Encoder": "InputProcessor",
    "Eyes": "EncoderCache",
    "Feed": "RequestQueue",
    "Geometry": "PatchGeometry",
    "Host": "HostRetryState",
    "HostRefused": "BlockedAddressError",
    "Keys": "CacheKeyBuilder",
    "Ledger": "ResultCollector",
    "LoadingFeed": "ImagePrefetcher",
    "Note": "IgnoredOption",
    "OnnxStepper": "OnnxModelRunner",
    "PackedLayer": "OneDNNLayer",
    "PackedLinear": "OneDNNLinear",
    "PackedMLP": "OneDNNMLP",
    "PackedText": "OneDNNText",
    "Parcel": "WorkItem",
    "Passing": "TransientError",
    "Picture": "LoadedImage",
    "Reading": "PrefillChunk",
    "Recall": "SourceIndex",
    "Recording": "CudaGraphRunner",
    "Row": "Sequence",
    "Seats": "SlotManager",
    "SeededChoice": "SeededGumbelNoise",
    "SlotCache": "SlottedKVCache",
    "Stepper": "ModelRunner",
    "TorchStepper": "TorchModelRunner",
    "Waiting": "WaitingQueue",
    "announce": "warn_ignored_options",
    "can_pack": "can_prepack",
    "identify": "classify",
    "deliver": "return_or_raise",
    "mark": "diff_html",
    "mask": "redact_url",
    "pack_text": "prepack_text",
    "pack_vision": "prepack_vision",
    "quietly": "silence_transformers",
}
ELSEWHERE = {  # names that left the successor of their module
    "backends.decoding.Language": ("inference.processor", "Tokenization"),
    "backends.decoding.decode_in_flight": ("inference.engine", "generate"),
    "backends.steps.FiniteGuard": ("torch_backend.stopping", "NonFiniteStop"),
    "backends.steps.StopWhen": ("torch_backend.stopping", "EventStoppingCriteria"),
    "backends.steps.warpers": ("inference.sampler", "logits_processors"),
    "backends.torch_vision.quicken": ("torch_backend.vision", "fuse_vision"),
    "backends.torch_compiled.attend": ("torch_backend.attention", "attend_step"),
    "backends.torch_compiled.attend_packed": ("torch_backend.attention", "step_attention"),
    "runner.threads.leave_cores": ("torch_backend.openmp", "release_openmp_threads"),
    "backends.base.make_spec": ("executors.specs", "make_spec"),
    "backends.make_spec": ("executors.specs", "make_spec"),
    "engines.base.execute": ("executors", "execute"),
    "engines.local.unload": ("executors", "unload"),
    "runner.run": ("executors.local", "run_spec"),
    "runner.run.run": ("executors.local", "run_spec"),
}


class _Former(ModuleType):
    """A module under its former name: its attributes are those of its successor."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        elsewhere = ELSEWHERE.get(f"{self.__name__.removeprefix('qwenvl_kit.')}.{name}")
        if elsewhere is not None:
            return getattr(importlib.import_module(f"qwenvl_kit.{elsewhere[0]}"), elsewhere[1])
        successor = importlib.import_module(MODULES[self.__name__])
        for known in (name, NAMES.get(name, name)):
            if hasattr(successor, known):
                return getattr(successor, known)
        raise AttributeError(f"module {successor.__name__!r} has no attribute {name!r}")


class _FormerNames(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return a spec for a former name, None for any other."""
        return ModuleSpec(name, self, is_package=True) if name in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Warn, and return the stand-in."""
        warn(
            f"{spec.name} is now {MODULES[spec.name]}; the former name leaves in the release after next.",
            DeprecationWarning,
        )
        return _Former(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Import the successor."""
        importlib.import_module(MODULES[module.__name__])


def install() -> None:
    """Let former names be imported."""
    if not any(isinstance(finder, _FormerNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, _FormerNames())  # before folders that an upgrade left behind
