"""Add up the memory of a run on each device: the process, the model, its rows and its widest pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, cast

from qwenvl_kit._memory import available_memory, resident_memory
from qwenvl_kit.checkpoints.activations import (
    ModelShape,
    feature_bytes,
    logits_bytes,
    patch_bytes,
    prompt_pass_bytes,
    vision_pass_bytes,
)
from qwenvl_kit.checkpoints.footprint import file_bytes, kv_bytes_per_token, loaded_bytes
from qwenvl_kit.images import ImageLoader
from qwenvl_kit.inference.cache_size import capacity_of, capacity_step
from qwenvl_kit.inference.packing import (
    MAX_FEATURE_BYTES,
    max_block_rows,
    max_held_patches,
    max_image_patches,
    max_prefill_tokens,
)
from qwenvl_kit.pipeline.request_buffer import MAX_BATCH_BYTES, MAX_WAITING_BYTES

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import BackendSpec
    from qwenvl_kit.options import DType
    from qwenvl_kit.tasks.plan_rows import PlannedRow

_WAITING_BYTES = MAX_WAITING_BYTES + MAX_BATCH_BYTES
# What the allocator keeps and libraries load during a run: 0 to 80 MiB in runs of three models and two dtypes.
_SLACK = 80 * 2**20
_CUDA_CONTEXT = 600 * 2**20  # of the driver and its kernels; an estimate, not yet tried on a GPU


@dataclass(frozen=True, slots=True)
class Part:
    """Memory that one part of a run takes at most.

    Attributes
    ----------
    device : str
        Where.
    name : str
        Of what.
    n_bytes : int
        How much.
    is_free : bool
        Whether it takes nothing of what is free: memory that the process has already, and pages of mapped files, which
        the system takes back when it needs them.
    """

    device: str
    name: str
    n_bytes: int
    is_free: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The most that the rows of a run ask of a model at once.

    Attributes
    ----------
    n_rows : int
        Rows that run.
    source_pixels : tuple of int
        Pixels of each row's largest image before resizing.
    max_pixels, sum_pixels : int
        Resized pixels of the largest image, and of all images.
    max_prompt, sum_prompt : int
        Tokens of the longest prompt, and of all prompts.
    """

    n_rows: int
    source_pixels: tuple[int, ...]
    max_pixels: int
    sum_pixels: int
    max_prompt: int
    sum_prompt: int

    @classmethod
    def of(cls, rows: Sequence[PlannedRow]) -> Self:
        """Return the workload of the rows that run."""
        good = [row for row in rows if row.status == "ok"]
        pixels = [height * width for row in good for height, width in row.resized]
        prompts = [row.prompt_tokens or 0 for row in good]
        return cls(
            n_rows=len(good),
            source_pixels=tuple(max(height * width for height, width in row.sizes) for row in good),
            max_pixels=max(pixels, default=0),
            sum_pixels=sum(pixels),
            max_prompt=max(prompts, default=0),
            sum_prompt=sum(prompts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMemory:
    """What decides the memory of a model, apart from its rows.

    Attributes
    ----------
    shape : ModelShape
    device : str
        ``cpu``, ``cuda:0`` or a device map's places.
    dtype : str
        Of activations, keys and values.
    weights : int
        Bytes of the weights.
    files : int
        Bytes of the weights' files.
    kv_per_token : int
        Bytes of keys and values of one token.
    patch : int
        Side of a patch in pixels.
    is_prepacked : bool
        Whether layers run on oneDNN's prepacked weights.
    """

    shape: ModelShape
    device: str
    dtype: DType
    weights: int
    files: int
    kv_per_token: int
    patch: int
    is_prepacked: bool

    @classmethod
    def of(cls, spec: BackendSpec) -> Self | None:
        """Return that of a spec; None where there is no model."""
        checkpoint, resolved = spec.checkpoint, spec.resolved
        if checkpoint is None:
            return None
        from qwenvl_kit.checkpoints.loading import load_config

        is_export = resolved.provider is not None
        return cls(
            shape=ModelShape.of(load_config(checkpoint)),
            device=resolved.device,
            dtype=cast("DType", resolved.dtype),
            weights=loaded_bytes(checkpoint, resolved),
            files=file_bytes(checkpoint, is_export=is_export),
            kv_per_token=kv_bytes_per_token(checkpoint.config, resolved.dtype),
            patch=spec.geometry.patch,
            is_prepacked=not is_export and resolved.device == "cpu" and resolved.dtype == "float32",
        )

    def in_16_bits(self) -> Self:
        """Return that of the same float32 model in bfloat16."""
        halves = self.weights // 2, self.kv_per_token // 2
        return replace(self, dtype="bfloat16", weights=halves[0], kv_per_token=halves[1], is_prepacked=False)

    def parts(self, work: Workload, *, rows_in_flight: int, max_new_tokens: int) -> list[Part]:
        """Return the memory of each part of a run, at its most.

        Passes follow one another, so that the widest of them counts. Images are decoded while the model runs.
        """
        n_slots = min(rows_in_flight, 1 << max(0, work.n_rows - 1).bit_length())  # the cache grows by doubling
        room = room_of(work, max_new_tokens, self.device)
        passes = {
            "vision pass": self._vision(work),
            "prompt pass": self._prompts(work, n_slots, room),
            "decode step": logits_bytes(self.shape, n_slots, self.dtype),
        }
        widest = max(passes, key=passes.__getitem__)
        features = feature_bytes(self.shape, work.sum_pixels // (self.patch * self.shape.merge) ** 2, self.dtype)
        running = [
            Part(self.device, f"keys and values of {n_slots} rows", n_slots * room * self.kv_per_token),
            Part(self.device, f"widest pass ({widest})", passes[widest]),
            Part(self.device, "visual tokens", min(features, MAX_FEATURE_BYTES) + features // max(1, work.n_rows)),
            Part("cpu", "images", _image_bytes(work)),
            Part("cpu", "allocator and libraries", _SLACK),
        ]
        if self.device != "cpu":
            running.append(Part(self.device, "CUDA's context", _CUDA_CONTEXT))
        process = Part("cpu", "this process", resident_memory() or 0, is_free=True)
        return [process, Part(self.device, "weights", self.weights), *running, *self._loading(running)]

    def _loading(self, running: Sequence[Part]) -> list[Part]:
        """Return what loading takes beyond the run: the files' pages, where weights are converted on the CPU."""
        if self.device != "cpu" or self.dtype != "float32" or not self.is_prepacked:
            return []
        beyond = self.files - sum(part.n_bytes for part in running)
        return [Part("cpu", "weight files while loading", beyond, is_free=True)] if beyond > 0 else []

    def _vision(self, work: Workload) -> int:
        largest, total = work.max_pixels // self.patch**2, work.sum_pixels // self.patch**2
        in_pass = max(largest, min(max_image_patches(self.device), total))
        held = max(largest, min(max_held_patches(self.device), total))
        return patch_bytes(self.shape, held) + vision_pass_bytes(
            self.shape, in_pass, self.dtype, block_rows=max_block_rows(self.device), is_prepacked=self.is_prepacked
        )

    def _prompts(self, work: Workload, n_slots: int, room: int) -> int:
        n_tokens = min(max_prefill_tokens(self.device), work.sum_prompt)
        n_rows = max(1, min(n_slots, n_tokens // max(1, work.max_prompt)))
        return prompt_pass_bytes(self.shape, n_tokens, n_rows, room, self.dtype, is_prepacked=self.is_prepacked)


def room_of(work: Workload, max_new_tokens: int, device: str) -> int:
    """Return the tokens of each slot of the cache."""
    return capacity_of([max(1, work.max_prompt + max_new_tokens)], capacity_step(device))


def free_memory_of(device: str) -> int | None:
    """Return the bytes that are free on a device; of a device map, on all its GPUs and in RAM; None where unknown."""
    if device == "cpu":
        return available_memory()
    import torch

    if not torch.cuda.is_available():
        return None
    single = device.removeprefix("cuda:")
    if single.isdigit():
        return int(torch.cuda.mem_get_info(int(single))[0])
    on_gpus = sum(int(torch.cuda.mem_get_info(index)[0]) for index in range(torch.cuda.device_count()))
    return on_gpus + (available_memory() or 0)


def by_device(parts: Sequence[Part], *, missing_only: bool = False) -> dict[str, int]:
    """Return the sum of parts on each device; with `missing_only`, of those that free memory must hold."""
    sums: dict[str, int] = {}
    for part in parts:
        sums[part.device] = sums.get(part.device, 0) + (0 if missing_only and part.is_free else part.n_bytes)
    return sums


def _image_bytes(work: Workload) -> int:
    """Return the bytes of images that wait and of those that are decoded, also in other processes."""
    waiting = min(_WAITING_BYTES + 3 * work.max_pixels, 3 * work.sum_pixels)
    return waiting + ImageLoader.decoding_bytes(work.source_pixels)
