"""Beam search by transformers' ``generate``, a batch at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from qwenvl_kit.checkpoints.hf_logging import silence_transformers
from qwenvl_kit.inference.cancellation import Cancelled, cancellable, points_before
from qwenvl_kit.inference.oom import free_memory, is_device_lost, is_out_of_memory
from qwenvl_kit.inference.outputs import failed, finished, oom_error, overflow_error
from qwenvl_kit.inference.waiting_queue import WaitingQueue
from qwenvl_kit.torch_backend.beam_logprobs import BeamLogprobs
from qwenvl_kit.torch_backend.stopping import EventStoppingCriteria, NonFiniteStop
from qwenvl_kit.types import Result

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.inference.backend import RequestQueue, RunControl
    from qwenvl_kit.inference.processor import Tokenization
    from qwenvl_kit.inference.sequence import Sequence

    _Places = Callable[[list[int]], list[list[tuple[int, float]]]]
    Batch = list[tuple[Sequence, Tensor | None]]  # with its patches (P, C·T·p·p); None where memory ran out for them


class BeamSearch:
    """Answer requests with several beams a row.

    Parameters
    ----------
    model : transformers.Qwen2_5_VLForConditionalGeneration
        In evaluation mode.
    tokenization : Tokenization
        The checkpoint's.
    pad_id : int
        The token that fills shorter prompts.
    device : torch.device
        Where inputs go.
    """

    def __init__(self, model: Any, tokenization: Tokenization, *, pad_id: int, device: torch.device) -> None:
        self._model, self._tokenization = model, tokenization
        self._pad_id, self._device = pad_id, device
        # generate() fills every value we leave open from the model's own generation config: it must hold none.
        model.generation_config = GenerationConfig()

    def generate(self, queue: RequestQueue, resolved: ResolvedConfig, control: RunControl) -> Iterator[Result]:
        """Yield the results of a queue's requests, prompts of like length together."""
        # min_length counts padding too, so rows of a checkpoint that sets it have batches of their own.
        batch_size = 1 if "min_length" in dict(resolved.generation) else resolved.batch_size
        waiting = WaitingQueue(self._tokenization.processor.encode, batch_size)
        while not control.cancel.is_set():
            yield from waiting.fill_from(queue)
            if waiting.sequences:
                batch, errors = self._patchify(waiting.next_batch())
                yield from errors
                if batch:
                    yield from self._answer(batch, resolved, control, waiting)
            elif waiting.is_drained:
                return
        yield from (Result(sequence.request.row, "cancelled") for sequence in waiting.sequences)

    def _patchify(self, sequences: list[Sequence]) -> tuple[Batch, list[Result]]:
        """Cut the images of each sequence into patches; return errors for those that cannot be cut."""
        batch: Batch = []
        errors: list[Result] = []
        for sequence in sequences:
            try:
                batch.append((sequence, self._patches(sequence)))
            except Exception as error:  # an image processor refused this row
                if is_device_lost(error):
                    raise
                if is_out_of_memory(error):
                    batch.append((sequence, None))  # cut again in a smaller batch
                else:
                    errors.append(failed(sequence.request, error, "cutting an image into patches"))
        return batch, errors

    def _patches(self, sequence: Sequence) -> Tensor:
        patchify = self._tokenization.processor.patchify
        return torch.cat([patchify(image, self._device) for image in sequence.request.images])

    def _answer(
        self, batch: Batch, resolved: ResolvedConfig, control: RunControl, waiting: WaitingQueue
    ) -> Iterator[Result]:
        """Answer a batch; when memory runs out, its halves."""
        results: list[Result] | None = None
        control.begin([sequence.request.row for sequence, _ in batch])
        try:
            with cancellable(control), points_before(self._layers()):
                results = self.generate_batch(batch, resolved, control)
        except Cancelled:
            results = [Result(sequence.request.row, "cancelled") for sequence, _ in batch]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if results is not None:
            yield from results
            return
        free_memory()  # outside the except clause, which would keep the failed forward's tensors alive
        if len(batch) == 1:
            yield oom_error(batch[0][0])
            return
        half = len(batch) // 2
        waiting.shrink_to(half)
        control.note(f"Out of memory with {len(batch)} sequences; continuing with at most {half}.")
        yield from self._answer(batch[:half], resolved, control, waiting)
        yield from self._answer(batch[half:], resolved, control, waiting)

    def generate_batch(self, batch: Batch, resolved: ResolvedConfig, control: RunControl) -> list[Result]:
        """Return the results of a batch; an out-of-memory error is raised."""
        started = time.perf_counter()
        inputs = self._collate(batch)
        sequences = [sequence for sequence, _ in batch]
        stop = NonFiniteStop(len(batch), resolved.num_beams, self._tokenization.eos_ids[0], self._device)
        record = self._record(len(batch), resolved)
        watching = nullcontext() if record is None else record.watching(self._model)
        with torch.inference_mode(), silence_transformers(), watching:
            generated = self._model.generate(
                **{name: tensor.to(self._device) for name, tensor in inputs.items()},
                generation_config=self._generation_config(sequences, resolved),
                logits_processor=[stop] if record is None else [stop, record],
                stopping_criteria=StoppingCriteriaList([EventStoppingCriteria(control.cancel)]),
            )
        outputs: list[list[int]] = generated.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        beams: list[list[int]] = generated.beam_indices.tolist()
        overflowed: list[bool] = stop.overflowed.tolist()
        seconds = (time.perf_counter() - started) / len(batch)
        results = [
            overflow_error(sequence, resolved.dtype)
            if is_overflow
            else self._result(
                sequence, output, seconds, None if record is None else partial(record.places, row, beams[row])
            )
            for row, (sequence, output, is_overflow) in enumerate(zip(sequences, outputs, overflowed, strict=True))
        ]
        if control.on_token is not None:  # the text of beams is not settled before the end
            for result in results:
                control.on_token(result.row, result.text or "")
        return results

    def _record(self, n_rows: int, resolved: ResolvedConfig) -> BeamLogprobs | None:
        if resolved.logprobs is None:
            return None
        return BeamLogprobs(n_rows, resolved.num_beams, self._tokenization.eos_ids, resolved.logprobs)

    def _layers(self) -> list[Any]:
        core = self._model.model
        return [*core.visual.blocks, *core.language_model.layers]

    def _collate(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``generate``'s inputs, padded on the left, as decoder-only models need it.

        ``input_ids``, ``attention_mask`` and ``mm_token_type_ids`` are (B, T); ``pixel_values`` and
        ``image_grid_thw`` are those of all images, one after the other.
        """
        longest = max(len(sequence.prompt_ids) for sequence, _ in batch)
        ids = torch.full((len(batch), longest), self._pad_id)  # (B, T)
        mask = torch.zeros_like(ids)
        for row, (sequence, _) in enumerate(batch):
            ids[row, longest - len(sequence.prompt_ids) :] = torch.tensor(sequence.prompt_ids)
            mask[row, longest - len(sequence.prompt_ids) :] = 1
        is_visual = (ids == self._tokenization.processor.image_id) & (mask == 1)
        patches = [self._patches(sequence) if cut is None else cut for sequence, cut in batch]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "mm_token_type_ids": is_visual.long(),
            "pixel_values": torch.cat(patches),  # (P, C·T·p·p)
            "image_grid_thw": torch.cat([sequence.grid for sequence, _ in batch]),  # (n_images, 3)
        }

    def _generation_config(self, sequences: list[Sequence], resolved: ResolvedConfig) -> GenerationConfig:
        """Return a config with every value given, so that nothing of the checkpoint's own slips in unseen."""
        own = dict(resolved.generation)
        max_new_tokens = max(sequence.request.max_new_tokens for sequence in sequences)
        longest = max(len(sequence.prompt_ids) for sequence in sequences)
        if "min_new_tokens" in own:
            own["min_new_tokens"] = min(own["min_new_tokens"], max_new_tokens)  # a larger one is a warning
        if "min_length" in own:
            own["min_length"] = min(own["min_length"], max_new_tokens + longest)
        return GenerationConfig(
            **own,
            do_sample=False,
            num_beams=resolved.num_beams,
            repetition_penalty=resolved.repetition_penalty,
            max_new_tokens=max_new_tokens,
            use_cache=True,
            eos_token_id=list(self._tokenization.eos_ids),
            pad_token_id=self._pad_id,
            return_dict_in_generate=True,
        )

    def _result(
        self, sequence: Sequence, output_ids: list[int], seconds: float, places: _Places | None = None
    ) -> Result:
        limit = sequence.request.max_new_tokens
        output_ids = output_ids[:limit]
        end = next((at for at, token in enumerate(output_ids) if token in self._tokenization.eos_ids), None)
        if end is None and len(output_ids) < limit:
            return Result(sequence.request.row, "cancelled")
        sequence.output_ids, sequence.seconds = output_ids[:end], seconds
        sequence.finish_reason = "length" if end is None else "stop"
        if places is not None:
            sequence.logprobs = places(output_ids if end is None else output_ids[: end + 1])
        return finished(sequence, self._tokenization.decode)
