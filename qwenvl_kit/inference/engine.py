"""The generation loop of every backend with a `ModelRunner`: schedule, prefill or decode, sample, postprocess."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import torch

from qwenvl_kit.calibration import Calibration, read_calibration
from qwenvl_kit.checkpoints.devices import hardware_label
from qwenvl_kit.errors import RowError
from qwenvl_kit.inference.cache_size import CacheSize, capacity_step
from qwenvl_kit.inference.cancellation import Cancelled, cancellable
from qwenvl_kit.inference.explainer import explained
from qwenvl_kit.inference.kv_slots import SlotManager
from qwenvl_kit.inference.label_scoring import LabelScorer
from qwenvl_kit.inference.long_images import LongImages
from qwenvl_kit.inference.oom import free_memory, is_out_of_memory
from qwenvl_kit.inference.patches import upload
from qwenvl_kit.inference.sampler import Sampler
from qwenvl_kit.inference.scheduler import Decode, Prefill, Scheduler
from qwenvl_kit.inference.waiting_queue import WaitingQueue

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.inference.backend import RequestQueue, RunControl
    from qwenvl_kit.inference.cache_memory import CacheMemory
    from qwenvl_kit.inference.encoder_cache import EncoderCache
    from qwenvl_kit.inference.explainer import Explainer
    from qwenvl_kit.inference.model_runner import ModelRunner
    from qwenvl_kit.inference.processor import Tokenization
    from qwenvl_kit.inference.sequence import Sequence
    from qwenvl_kit.types import Result

_T = TypeVar("_T")


def generate(
    model_runner: ModelRunner,
    encoder_cache: EncoderCache,
    tokenization: Tokenization,
    queue: RequestQueue,
    resolved: ResolvedConfig,
    control: RunControl,
    memory: CacheMemory | None = None,
    explainer: Explainer | None = None,
) -> Iterator[Result]:
    """Answer the requests of a queue.

    Parameters
    ----------
    model_runner : ModelRunner
        The model; its cache is empty afterwards.
    encoder_cache : EncoderCache
        Over the same model runner.
    tokenization : Tokenization
        The checkpoint's.
    queue : RequestQueue
        The requests.
    resolved : ResolvedConfig
        ``rows_in_flight`` is the most sequences that run at once, ``batch_size`` the most of one prefill.
    control : RunControl
        Cancels between two steps, and within long passes.
    memory : CacheMemory, optional
        Measures what the cache may take. If it is unknown, no more than ``batch_size`` run where none were asked for.
    explainer : Explainer, optional
        Traces answers to images; without it, requests that ask for maps become errors.

    Yields
    ------
    Result
        One per request, in the order in which they finish.
    """
    encoder_cache.start_run(resolved.decode)
    try:
        engine = Engine(model_runner, encoder_cache, tokenization, queue, resolved, control, memory, explainer)
        yield from engine.run()
    finally:
        model_runner.resize_cache(0, 0)


class Engine:
    """One run of the generation loop; see `generate` for its parameters."""

    def __init__(
        self,
        model_runner: ModelRunner,
        encoder_cache: EncoderCache,
        tokenization: Tokenization,
        queue: RequestQueue,
        resolved: ResolvedConfig,
        control: RunControl,
        memory: CacheMemory | None = None,
        explainer: Explainer | None = None,
    ) -> None:
        self._explainer = explainer
        self._model_runner, self._encoder_cache = model_runner, encoder_cache
        self._long_images = LongImages(control, model_runner.device, _calibration_of(resolved))
        self._queue, self._control = queue, self._long_images.control
        reserve, step = resolved.rows_in_flight == "auto", capacity_step(model_runner.device)
        size = CacheSize(memory, reserve=reserve, step=step)
        self._slots = SlotManager(model_runner, size)
        self._waiting = WaitingQueue(tokenization.processor.encode, resolved.batch_size)
        self._scheduler = Scheduler(self._waiting, self._slots, tokenization, resolved, control)
        self._sampler = Sampler(resolved, tokenization.eos_ids, tokenization.grammars)
        self._label_scorer = LabelScorer(model_runner, tokenization.eos_ids[0])

    def run(self) -> Iterator[Result]:
        """Yield results until the queue is drained or the run is cancelled."""
        while not self._control.cancel.is_set():
            yield from self._admit()
            batch = self._scheduler.schedule()
            if batch is not None:
                yield from self._run_batch(batch)
            elif self._waiting.is_drained:
                return
        yield from self._scheduler.cancel()

    def _admit(self) -> Iterator[Result]:
        """Encode requests while there is room; wait for one only when nothing else can run."""
        if self._scheduler.n_free > 0:
            yield from self._waiting.fill_from(self._queue, block=not self._slots.sequences)

    def _run_batch(self, batch: Prefill | Decode) -> Iterator[Result]:
        forward = self._prefill if isinstance(batch, Prefill) else self._decode
        try:
            with cancellable(self._control):
                sampled = _unless_out_of_memory(lambda: forward(batch.sequences))
        except Cancelled:
            return
        if sampled is None:
            yield from self._preempt_and_shrink()
        else:
            with contextlib.suppress(Cancelled):  # while an answer is traced; the caller's loop ends the run
                yield from self._scheduler.postprocess(*sampled, self._explain)

    def _prefill(self, sequences: list[Sequence]) -> tuple[list[Sequence], list[int | None]]:
        """Encode images, prefill prompts and sample first tokens of the sequences whose images are good."""
        started = time.perf_counter()
        self._slots.allocate(sequences, max_slots=self._scheduler.max_num_seqs)
        sequences, features = self._encode_images(sequences)
        if not sequences:
            return [], []
        logits: dict[int, Tensor] = {}
        for stage in self._slots.plan_prefill(sequences, features):
            self._slots.copy_prefixes(stage)
            slots = [chunk.slot for chunk in stage.chunks]
            logits |= zip(slots, self._model_runner.prefill(stage.chunks), strict=True)
        slot_of = dict(zip(sequences, self._slots.slots_of(sequences), strict=True))
        prefill_s = (time.perf_counter() - started) / len(sequences)
        for sequence in (one for one in sequences if one.label_ids):
            self._score_labels(sequence, slot_of[sequence], logits[slot_of[sequence]], prefill_s)
        answered = [one for one in sequences if not one.is_finished]
        if not answered:
            return [], []
        rows = torch.stack([logits[slot_of[one]] for one in answered])  # (B, V)
        return answered, self._sample(answered, rows, time.perf_counter() - prefill_s * len(answered))

    def _score_labels(self, sequence: Sequence, slot: int, logits: Tensor, prefill_s: float) -> None:
        started = time.perf_counter()
        self._label_scorer.score(sequence, slot, logits)
        sequence.seconds += prefill_s + time.perf_counter() - started

    def _encode_images(self, sequences: list[Sequence]) -> tuple[list[Sequence], list[Tensor]]:
        """Return the sequences whose images are good, and the visual tokens of each; the others get an `error`."""
        good: list[Sequence] = []
        tensors: list[Tensor] = []
        self._control.begin([one.request.row for one in sequences])
        self._long_images.begin(sequences)
        for sequence, features in zip(sequences, self._encoder_cache.encode(sequences), strict=True):
            if isinstance(features, Exception):
                sequence.error = features
            else:
                good.append(sequence)
                tensors.append(features)
        return good, tensors

    def _decode(self, sequences: list[Sequence]) -> tuple[list[Sequence], list[int | None]]:
        """Append the newest token of each sequence to its slot and sample the next."""
        started = time.perf_counter()
        rows = [(sequence.output_ids[-1], sequence.position, sequence.n_tokens - 1) for sequence in sequences]
        ids, positions, lengths = upload(torch.tensor(rows).T.contiguous(), self._model_runner.device)  # (B,) each
        max_len = max(sequence.n_tokens for sequence in sequences)
        logits = self._model_runner.decode(ids, positions, lengths, max_len)  # (B, V)
        return sequences, self._sample(sequences, logits, started)

    def _sample(self, sequences: list[Sequence], logits: Tensor, started: float) -> list[int | None]:
        sampled = self._sampler.sample(logits, sequences)
        seconds = (time.perf_counter() - started) / len(sequences)
        for sequence in sequences:
            sequence.seconds += seconds
        for sequence, logprobs in zip(sequences, sampled.logprobs or (), strict=False):
            sequence.logprobs.append(logprobs)
        return sampled.ids

    def _explain(self, sequence: Sequence) -> None:
        """Trace a finished answer to its images; any fault is the row's."""
        started = time.perf_counter()
        try:
            with cancellable(self._control):
                sequence.maps = explained(self._explainer, sequence, self._slots.slots_of([sequence])[0])
        except RowError as error:
            sequence.error = error
        sequence.seconds += time.perf_counter() - started

    def _preempt_and_shrink(self) -> list[Result]:
        results = self._scheduler.preempt()
        self._encoder_cache.clear()
        free_memory()
        return results


def _calibration_of(resolved: ResolvedConfig) -> Calibration | None:
    return read_calibration(resolved.fingerprint, hardware_label(resolved.device, resolved.threads))


def _unless_out_of_memory(work: Callable[[], _T]) -> _T | None:
    """Return what `work` does, or None if memory ran out.

    The exception is gone once this returns, and with it the failed forward's tensors.
    """
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return None
        raise
