"""Beam search, which transformers' ``generate`` does: requests in, results out, a batch at a time.

What a batch is, how it is padded and when it is halved is known nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from qwenvl_kit.checkpoints.hf_logging import silence_transformers
from qwenvl_kit.inference.oom import free_memory, is_out_of_memory
from qwenvl_kit.inference.outputs import failed, finished, oom_error, overflow_error
from qwenvl_kit.inference.processor import Encoded, collate
from qwenvl_kit.inference.seeded_noise import EventStoppingCriteria, NonFiniteStop
from qwenvl_kit.inference.waiting_queue import WaitingQueue
from qwenvl_kit.types import Result

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.inference.backend import Control, RequestQueue
    from qwenvl_kit.inference.scheduler import Tokenization
    from qwenvl_kit.types import LoadedImage


class BeamSearch:
    """A model that keeps several answers of each row in mind.

    Parameters
    ----------
    model : transformers.Qwen2_5_VLForConditionalGeneration
        In evaluation mode.
    tokenization : Tokenization
        The checkpoint's tokens.
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

    def generate(self, queue: RequestQueue, resolved: ResolvedConfig, control: Control) -> Iterator[Result]:
        """Answer what the queue gives, rows of like length together."""
        # A least length counts padding too, so rows of such a checkpoint go alone.
        waiting = WaitingQueue(1 if "min_length" in dict(resolved.generation) else resolved.batch_size)
        while not control.cancel.is_set():
            requests = waiting.fill_from(queue)
            if requests is None and not waiting.rows:
                return
            for request in requests or ():
                try:
                    waiting.rows.append(self._tokenization.encoder.encode(request))
                except Exception as error:  # noqa: BLE001  # a tokenizer or template refused this row
                    yield failed(request, error, "encoding the prompt")
            if waiting.rows:
                batch, failures = _cut(waiting.next_batch())
                yield from failures
                if batch:
                    yield from self._answer(batch, resolved, control, waiting)
        yield from (Result(encoded.request.row, "cancelled") for encoded in waiting.rows)

    def _answer(
        self, batch: list[Encoded], resolved: ResolvedConfig, control: Control, waiting: WaitingQueue
    ) -> Iterator[Result]:
        """Answer a batch; when memory runs out, its halves."""
        try:
            answers = self._generate(batch, resolved, control)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            answers = None
        if answers is not None:
            yield from answers
            return
        free_memory()  # outside the except clause, which would keep the failed forward's tensors alive
        if len(batch) == 1:
            yield oom_error(batch[0])
            return
        half = len(batch) // 2
        waiting.shrink_to(half)
        control.note(f"memory ran out at {len(batch)} pictures at once; went on with {half}")
        yield from self._answer(batch[:half], resolved, control, waiting)
        yield from self._answer(batch[half:], resolved, control, waiting)

    def _generate(self, batch: list[Encoded], resolved: ResolvedConfig, control: Control) -> list[Result]:
        started = time.perf_counter()
        tensors = collate(batch, pad_id=self._pad_id, image_id=self._tokenization.image_id)
        prompt_length = tensors["input_ids"].shape[1]
        guard = NonFiniteStop(len(batch), resolved.num_beams, self._tokenization.eos_ids[0], self._device)
        with torch.inference_mode(), silence_transformers():
            sequences: Tensor = self._model.generate(
                **{name: tensor.to(self._device) for name, tensor in tensors.items()},
                generation_config=self._generation_config(batch, resolved),
                logits_processor=[guard],
                stopping_criteria=StoppingCriteriaList([EventStoppingCriteria(control.cancel)]),
            )
        rows: list[list[int]] = sequences[:, prompt_length:].tolist()
        broken: list[bool] = guard.broken.tolist()
        seconds = (time.perf_counter() - started) / len(batch)
        results = [
            overflow_error(encoded, resolved.dtype) if is_broken else self._result(encoded, ids, seconds)
            for encoded, ids, is_broken in zip(batch, rows, broken, strict=True)
        ]
        if control.on_token is not None:  # beams change their minds until the end
            for result in results:
                control.on_token(result.row, result.text or "")
        return results

    def _generation_config(self, batch: list[Encoded], resolved: ResolvedConfig) -> GenerationConfig:
        """Every value is given, so that nothing of the checkpoint's own slips in unseen."""
        own = dict(resolved.generation)
        n_most = max(encoded.request.max_new_tokens for encoded in batch)
        if "min_new_tokens" in own:
            own["min_new_tokens"] = min(own["min_new_tokens"], n_most)  # more than the most is a warning
        if "min_length" in own:
            own["min_length"] = min(own["min_length"], n_most + max(len(encoded.ids) for encoded in batch))
        return GenerationConfig(
            **own,
            do_sample=False,
            num_beams=resolved.num_beams,
            repetition_penalty=resolved.repetition_penalty,
            max_new_tokens=n_most,
            use_cache=True,
            eos_token_id=list(self._tokenization.eos_ids),
            pad_token_id=self._pad_id,
        )

    def _result(self, encoded: Encoded, ids: list[int], seconds: float) -> Result:
        n_most = encoded.request.max_new_tokens
        ids = ids[:n_most]
        end = next((at for at, token in enumerate(ids) if token in self._tokenization.eos_ids), None)
        if end is None and len(ids) < n_most:
            return Result(encoded.request.row, "cancelled")
        decode = self._tokenization.decode
        return finished(encoded, ids[:end], "length" if end is None else "stop", decode, seconds=seconds)


def _cut(batch: list[Encoded]) -> tuple[list[Encoded], list[Result]]:
    """Cut each row's pictures, once; give the rows that can be asked, and the results of the others."""
    cut: list[Encoded] = []
    failures: list[Result] = []
    for encoded in batch:
        try:
            patches = {id(picture): encoded.patchify(picture) for picture in encoded.request.images}
        except Exception as error:  # noqa: BLE001  # an image processor refused this row
            if is_out_of_memory(error):
                cut.append(encoded)  # cut again in a smaller batch
                continue
            failures.append(failed(encoded.request, error, "cutting the picture"))
        else:
            cut.append(replace(encoded, patchify=partial(_patches_of, patches)))
    return cut, failures


def _patches_of(patches: dict[int, Tensor], picture: LoadedImage) -> Tensor:
    return patches[id(picture)]
