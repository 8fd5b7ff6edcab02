"""Qwen2.5-VL through transformers and accelerate: requests in, results out, a batch at a time.

Frames and URLs are unknown here; what a batch is, how it is padded and when it is halved is known nowhere else.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoProcessor, GenerationConfig, Qwen2_5_VLForConditionalGeneration, StoppingCriteriaList
from transformers.utils import logging as transformers_logging

from qwenvl_kit.backends.batching import Waiting
from qwenvl_kit.backends.checkpoint import Checkpoint, find, read
from qwenvl_kit.backends.devices import find_device
from qwenvl_kit.backends.encode import Encoded, Encoder, collate
from qwenvl_kit.backends.repetition import repeated_phrase
from qwenvl_kit.backends.steps import FiniteGuard, SeededChoice, StopLoops, StopWhen, TokenTap, warpers
from qwenvl_kit.effective import CheckpointDefaults, Effective, resolve
from qwenvl_kit.errors import CheckpointError, RowError
from qwenvl_kit.records import Geometry, Result

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.backends.base import Control, Feed
    from qwenvl_kit.config import Config


@dataclass(frozen=True, slots=True)
class TorchSpec:
    """A checkpoint and what will run of it, before any weight is read."""

    folder: Path
    digest: str
    config: Config
    effective: Effective
    geometry: Geometry

    @property
    def fingerprint(self) -> str:
        """Digest of weights, dtype and attention."""
        return self.effective.fingerprint

    @property
    def identity(self) -> str:
        """Equal for configs that can share one loaded model."""
        placed = (self.config.device_map, self.config.max_memory)
        return f"torch:{self.folder}:{self.fingerprint}:{self.effective.device}:{placed}"

    def load(self) -> TorchBackend:
        """Read the weights."""
        return TorchBackend(self)


class TorchBackend:
    """A loaded Qwen2.5-VL.

    Parameters
    ----------
    spec : TorchSpec
        What to load, and how.
    """

    def __init__(self, spec: TorchSpec) -> None:
        checkpoint = read(spec.folder)
        with contextlib.ExitStack() as held, _quietly():
            processor = AutoProcessor.from_pretrained(spec.folder, local_files_only=True)
            self._model = _load_model(spec, held)
            self._held = held.pop_all()
        if read(spec.folder).digest != spec.digest:
            self.close()
            raise CheckpointError(f"{spec.folder} was changed while it was loaded; call again once it is at rest")
        self._tokenizer = processor.tokenizer
        self._encoder = Encoder(processor, checkpoint.context)
        self._eos_ids = checkpoint.eos_token_ids
        self._ids = {"pad_id": int(self._tokenizer.pad_token_id), "image_id": int(processor.image_token_id)}
        # generate() fills every value we leave open from the model's own generation config: it must hold none.
        self._model.generation_config = GenerationConfig()

    def stream(self, feed: Feed, effective: Effective, control: Control) -> Iterator[Result]:
        """Answer what the feed gives, batch by batch, rows of like length together."""
        waiting = Waiting(effective.batch_size)
        if places := getattr(self._model, "hf_device_map", None):
            control.note(f"the device map placed modules on {_places(places)}")
        while not control.cancel.is_set():
            requests = waiting.top_up(feed)
            if requests is None and not waiting.rows:
                return
            for request in requests or ():
                try:
                    waiting.rows.append(self._encoder.encode(request))
                except RowError as error:
                    yield Result.failed(request.row, error, size=request.pictures[0].size)
            if waiting.rows:
                yield from self._answer(waiting.next_batch(), effective, control, waiting)
        yield from (Result(encoded.request.row, "cancelled") for encoded in waiting.rows)

    def close(self) -> None:
        """Free the model and its offload folder."""
        del self._model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._held.close()

    def _answer(
        self, batch: list[Encoded], effective: Effective, control: Control, waiting: Waiting
    ) -> Iterator[Result]:
        """Answer a batch; when memory runs out, its halves."""
        started = time.perf_counter()
        try:
            answers = self._generate(batch, effective, control)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            answers = None
        if answers is not None:
            seconds = (time.perf_counter() - started) / len(batch)
            yield from (replace(answer, seconds=seconds) for answer in answers)
            return
        _free_memory()  # outside the except clause, which would keep the failed forward's tensors alive
        if len(batch) == 1:
            yield Result.failed(batch[0].request.row, _too_large(batch[0]), size=batch[0].request.pictures[0].size)
            return
        waiting.shrink_to(len(batch) // 2)
        control.note(f"memory ran out at {len(batch)} pictures in one forward; went on with {len(batch) // 2}")
        half = len(batch) // 2
        yield from self._answer(batch[:half], effective, control, waiting)
        yield from self._answer(batch[half:], effective, control, waiting)

    def _generate(self, batch: list[Encoded], effective: Effective, control: Control) -> list[Result]:
        device = _input_device(self._model)
        tensors = {name: tensor.to(device) for name, tensor in collate(batch, **self._ids).items()}
        prompt_length = tensors["input_ids"].shape[1]
        guard = FiniteGuard(len(batch), effective.num_beams, self._eos_ids[0], device)
        loops = StopLoops(prompt_length)
        with torch.inference_mode(), _quietly():
            sequences: Tensor = self._model.generate(
                **tensors,
                generation_config=self._generation_config(batch, effective),
                logits_processor=[guard, *self._sampling(batch, effective, device)],
                stopping_criteria=StoppingCriteriaList(
                    [
                        *([loops] if effective.stop_repetition else []),
                        *self._watchers(batch, effective, control, prompt_length),
                    ]
                ),
            )
        rows: list[list[int]] = sequences[:, prompt_length:].tolist()
        broken: list[bool] = guard.broken.tolist()
        results = [
            self._broken(encoded, effective)
            if broken[at]
            else self._result(encoded, rows[at], loops=at in loops.stopped)
            for at, encoded in enumerate(batch)
        ]
        if control.on_token is not None and effective.num_beams > 1:  # beams change their minds until the end
            for result in results:
                control.on_token(result.row, result.text or "")
        return results

    def _generation_config(self, batch: list[Encoded], effective: Effective) -> GenerationConfig:
        """Every value is given, so that nothing of the checkpoint's own slips in unseen; draws are `SeededChoice`'s."""
        return GenerationConfig(
            do_sample=False,
            num_beams=effective.num_beams,
            repetition_penalty=effective.repetition_penalty,
            max_new_tokens=max(encoded.request.max_new_tokens for encoded in batch),
            use_cache=True,
            eos_token_id=list(self._eos_ids),
            pad_token_id=self._ids["pad_id"],
        )

    def _sampling(self, batch: list[Encoded], effective: Effective, device: torch.device) -> list[Any]:
        if not effective.do_sample:
            return []
        seeds = [encoded.request.seed for encoded in batch]
        return [*warpers(effective), SeededChoice([secrets.randbits(63) if s is None else s for s in seeds], device)]

    def _watchers(self, batch: list[Encoded], effective: Effective, control: Control, prompt_length: int) -> list[Any]:
        watchers: list[Any] = [StopWhen(control.cancel)]
        on_token = control.on_token
        if on_token is not None and effective.num_beams == 1:

            def on_text(position: int, text: str) -> None:
                on_token(batch[position].request.row, text)

            watchers.append(TokenTap(self._decode, on_text, self._eos_ids, len(batch), prompt_length))
        return watchers

    def _broken(self, encoded: Encoded, effective: Effective) -> Result:
        request = encoded.request
        return Result.failed(request.row, _not_finite(effective.dtype), size=request.pictures[0].size)

    def _result(self, encoded: Encoded, ids: list[int], *, loops: bool) -> Result:
        request = encoded.request
        ids = ids[: request.max_new_tokens]
        end = next((position for position, token in enumerate(ids) if token in self._eos_ids), None)
        if end is None and len(ids) < request.max_new_tokens and not loops:
            return Result(request.row, "cancelled")
        said = ids[:end]
        was_cut = loops and len(said) < request.max_new_tokens
        phrase = repeated_phrase(said) if was_cut or end is None else None
        height, width = request.pictures[0].size
        return Result(
            request.row,
            "ok",
            text=self._decode(said),
            finish_reason="repetition" if was_cut else "length" if end is None else "stop",
            prompt_tokens=len(encoded.ids),
            new_tokens=len(said),
            height=height,
            width=width,
            flag=None if phrase is None else f"repeats {self._decode(said[-phrase:])!r} to its end",
        )

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def spec(config: Config) -> TorchSpec:
    """Find the checkpoint and the device that a config means.

    Raises
    ------
    ConfigError
        ``rank`` names no visible GPU.
    ModelNotFound, CheckpointError
        There is no checkpoint, or none of the family.
    """
    device = find_device(config)
    checkpoint = find(config)
    planned = resolve(config, device, _defaults(checkpoint))
    fingerprint = hashlib.blake2b(
        f"{checkpoint.digest}:{planned.dtype}:{planned.attention}".encode(), digest_size=16
    ).hexdigest()
    return TorchSpec(
        checkpoint.path, checkpoint.digest, config, replace(planned, fingerprint=fingerprint), checkpoint.geometry
    )


def _defaults(checkpoint: Checkpoint) -> CheckpointDefaults:
    return CheckpointDefaults(str(checkpoint.path), "", checkpoint.geometry, checkpoint.repetition_penalty)


def _load_model(spec: TorchSpec, held: contextlib.ExitStack) -> Any:
    """Load with the attention decided beforehand: transformers must not look for a kernel on the hub."""
    config = spec.config
    placed, offload_folder = config.device_map, None
    if placed is None:
        placed = spec.effective.device
    else:
        offload_folder = held.enter_context(tempfile.TemporaryDirectory(prefix="qwenvl_kit-offload-"))
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        spec.folder,
        dtype=getattr(torch, spec.effective.dtype),
        attn_implementation=spec.effective.attention,
        device_map=dict(placed) if isinstance(placed, Mapping) else placed,
        max_memory=None if config.max_memory is None else dict(config.max_memory),
        offload_folder=offload_folder,
        use_safetensors=True,
        local_files_only=True,
    )
    return model.eval()


def _input_device(model: Any) -> torch.device:
    """Where inputs go: the device of the first weights that are in memory (offloaded ones are on "meta")."""
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


def _places(device_map: Mapping[str, Any]) -> str:
    """Say how many modules are where, such as ``cpu: 2, disk: 1``."""
    counts = Counter(f"cuda:{place}" if isinstance(place, int) else str(place) for place in device_map.values())
    return ", ".join(f"{place}: {n}" for place, n in counts.items())


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _too_large(encoded: Encoded) -> RowError:
    height, width = encoded.request.pictures[0].size
    return RowError(
        "generate",
        f"memory ran out for this row alone ({len(encoded.ids)} tokens, first picture {width}×{height}); lower "
        "max_pixels or max_caption_length, or spread the model with device_map='auto'",
    )


def _not_finite(dtype: str) -> RowError:
    advice = "dtype='float32'" if dtype == "bfloat16" else "dtype='bfloat16', which has the range of float32,"
    return RowError(
        "generate", f"the model's numbers overflowed in {dtype} (NaN or infinite logits); {advice} may help"
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers' progress bars and advice out of the caller's notebook while it loads and generates."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
