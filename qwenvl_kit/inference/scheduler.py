"""Requests in, results out as soon as each is done: the decode loop that every backend with a `ModelRunner` shares.

Rows that finish leave at once and waiting rows join while others decode, so no step is spent on a row that has said
all, nor a slot on none (in-flight batching: Yu et al. 2022, Orca, https://www.usenix.org/conference/osdi22/presentation/yu).
How a model computes is not known here; frames and URLs neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from qwenvl_kit.inference.encoder_cache import ImageEncodingError
from qwenvl_kit.inference.kv_slots import SlotManager
from qwenvl_kit.inference.oom import free_memory, is_out_of_memory
from qwenvl_kit.inference.outputs import failed, finished, oom_error, overflow_error
from qwenvl_kit.inference.processor import InputProcessor
from qwenvl_kit.inference.sampler import Sampler
from qwenvl_kit.inference.sequence import Sequence
from qwenvl_kit.inference.waiting_queue import WaitingQueue
from qwenvl_kit.types import Result

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.inference.backend import Control, RequestQueue
    from qwenvl_kit.inference.encoder_cache import EncoderCache
    from qwenvl_kit.inference.model_runner import ModelRunner
    from qwenvl_kit.inference.preflight import Tokens
    from qwenvl_kit.inference.processor import Encoded


@dataclass(frozen=True, slots=True)
class Tokenization:
    """How requests become tokens and tokens text.

    Attributes
    ----------
    encoder : InputProcessor
        Requests to tokens.
    decode : callable
        Tokens to text.
    eos_ids : tuple of int
        Tokens that end an answer.
    image_id : int
        The token that stands for a piece of a picture.
    merge : int
        Patches per side that become one visual token.
    """

    encoder: InputProcessor = field(repr=False)
    decode: Callable[[list[int]], str] = field(repr=False)
    eos_ids: tuple[int, ...]
    image_id: int
    merge: int

    @classmethod
    def of(cls, processor: Any, context: int, tokens: Tokens) -> Tokenization:
        """Return those of a checkpoint: of its processor, its context length and its special tokens."""
        tokenizer = processor.tokenizer

        def decode(ids: list[int]) -> str:
            text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            return text

        return cls(
            InputProcessor(processor, context, vocab_size=tokens.vocab_size),
            decode,
            tokens.eos_ids,
            int(processor.image_token_id),
            int(processor.image_processor.merge_size),
        )


def generate(
    model_runner: ModelRunner,
    encoder_cache: EncoderCache,
    tokenization: Tokenization,
    queue: RequestQueue,
    resolved: ResolvedConfig,
    control: Control,
) -> Iterator[Result]:
    """Answer what the queue gives, one token of every row at hand after the other.

    Parameters
    ----------
    model_runner : ModelRunner
        The model; its slots are this loop's while it runs, and empty afterwards.
    encoder_cache : EncoderCache
        Look at pictures through the same model_runner.
    tokenization : Tokenization
        The checkpoint's tokens.
    queue : RequestQueue
        Gives requests.
    resolved : ResolvedConfig
        ``batch_size`` is the most rows that decode at once.
    control : Control
        Cancels between two tokens, listens to each.

    Yields
    ------
    Result
        One per request, in the order in which they are done.
    """
    encoder_cache.start_run(resolved.decode)
    loop = _Loop(model_runner, encoder_cache, tokenization, queue, resolved, control)
    try:
        yield from loop.run()
    finally:
        model_runner.resize_cache(0, 0)


class _Loop:
    def __init__(
        self,
        model_runner: ModelRunner,
        encoder_cache: EncoderCache,
        tokenization: Tokenization,
        queue: RequestQueue,
        resolved: ResolvedConfig,
        control: Control,
    ) -> None:
        self._model_runner, self._encoder_cache, self._tokenization = model_runner, encoder_cache, tokenization
        self._queue, self._effective, self._control = queue, resolved, control
        self._waiting = WaitingQueue(resolved.batch_size)
        self._is_over = False  # the queue has no more
        self._preempted: dict[int, Sequence] = {}  # rows that lost their slots when memory ran out, by their number
        self._slots = SlotManager(model_runner)
        self._n_most = resolved.batch_size
        self._failures: list[Result] = []  # of rows that lost their slots before the model ran
        self._sampler = Sampler(resolved, tokenization.eos_ids)

    def run(self) -> Iterator[Result]:
        """Take, read or step, let go, until there is no more."""
        while not self._control.cancel.is_set():
            yield from self._admit()
            if self._free and self._waiting.rows:
                ran_out = _runs_out_of_memory(self._prefill)
            elif self._slots.rows:
                ran_out = _runs_out_of_memory(self._decode)
            elif self._is_over:
                return
            else:
                continue
            if ran_out:
                yield from self._preempt_and_shrink()
            yield from self._finish()
        yield from (Result(row.encoded.request.row, "cancelled") for row in self._slots.rows)
        yield from (Result(encoded.request.row, "cancelled") for encoded in self._waiting.rows)

    @property
    def _free(self) -> int:
        return self._n_most - len(self._slots.rows)

    def _admit(self) -> Iterator[Result]:
        """Take requests while there is room for rows; wait for one only when there is nothing else to do."""
        if self._is_over or not self._free:
            return
        requests = self._waiting.fill_from(self._queue, block=not self._slots.rows)
        self._is_over = requests is None
        for request in requests or ():
            try:
                self._waiting.rows.append(self._tokenization.encoder.encode(request))
            except Exception as error:  # noqa: BLE001  # a tokenizer or template refused this row
                yield failed(request, error, "encoding the prompt")

    def _prefill(self) -> None:
        """Let rows join: see their pictures, read their prompts, choose their first tokens."""
        started = time.perf_counter()
        rows = [self._begin(encoded) for encoded in self._waiting.next_batch(self._free)]
        self._slots.allocate(rows, n_most=self._n_most)
        rows, visual = self._see(rows)
        if not rows:
            return
        logits: dict[int, Tensor] = {}
        for stage, chunks in enumerate(self._slots.plan_prefill(rows, visual)):
            self._slots.copy_prefixes(stage)
            slots = [chunk.slot for chunk in chunks]
            logits |= dict(zip(slots, self._model_runner.prefill(chunks), strict=True))
        self._sample(rows, torch.stack([logits[slot] for slot in self._slots.slots_of(rows)]), started)

    def _see(self, rows: list[Sequence]) -> tuple[list[Sequence], list[Tensor]]:
        """Visual tokens of rows; those whose pictures cannot be cut lose their slots."""
        while rows:
            try:
                return rows, self._encoder_cache.encode([row.encoded for row in rows])
            except ImageEncodingError as error:
                for row in rows:
                    row.overflowed = error.image_key in row.encoded.image_keys
                    if row.overflowed:
                        self._failures.append(failed(row.encoded.request, error.cause, "cutting the picture"))
                rows = [row for row in rows if not row.overflowed]
                self._slots.release_finished()
        return rows, []

    def _begin(self, encoded: Encoded) -> Sequence:
        tokenization = self._tokenization
        return self._preempted.pop(encoded.request.row, None) or Sequence(
            encoded, image_id=tokenization.image_id, merge=tokenization.merge, device=self._model_runner.device
        )

    def _decode(self) -> None:
        """Append its newest token to each row's slot and choose the next."""
        started = time.perf_counter()
        rows = self._slots.compact()
        ids = torch.tensor([row.output_ids[-1] for row in rows])
        positions = torch.tensor([row.position for row in rows])
        lengths = torch.tensor([row.n_tokens - 1 for row in rows])
        device = self._model_runner.device
        logits = self._model_runner.decode(ids.to(device), positions.to(device), lengths.to(device))  # (B, V)
        self._sample(rows, logits, started)

    def _sample(self, rows: list[Sequence], logits: Tensor, started: float) -> None:
        """Choose a token for each row from logits (B, V), and tell whoever listens."""
        tokens = self._sampler.sample(logits, rows)
        seconds = (time.perf_counter() - started) / len(rows)
        for row, token in zip(rows, tokens, strict=True):
            row.seconds += seconds
            row.append_token(token, self._tokenization.eos_ids, stops_loops=self._effective.stop_repetition)
            if self._control.on_token is not None:
                row.emit_text(self._tokenization.decode, self._control.on_token)

    def _finish(self) -> Iterator[Result]:
        failures, self._failures = self._failures, []
        yield from failures
        for row in self._slots.release_finished():
            if row.finish_reason is None:
                yield overflow_error(row.encoded, self._effective.dtype)
            else:
                yield finished(
                    row.encoded, row.output_ids, row.finish_reason, self._tokenization.decode, seconds=row.seconds
                )

    def _preempt_and_shrink(self) -> Iterator[Result]:
        """Fewer rows at once; those that were cut short are read again and go on where they stopped."""
        rows = self._slots.preempt_all()
        self._encoder_cache.clear()
        free_memory()
        if len(rows) == 1:
            yield oom_error(rows[0].encoded)
            self._n_most = self._effective.batch_size  # it was this row that needed so much
            return
        self._n_most = len(rows) // 2
        self._control.note(f"memory ran out at {len(rows)} pictures at once; went on with {self._n_most}")
        self._preempted |= {row.encoded.request.row: row for row in rows}
        self._waiting.put_back([row.encoded for row in rows])


def _runs_out_of_memory(work: Callable[[], None]) -> bool:
    """Do it; the exception and the failed forward's tensors that it holds are gone once this returns."""
    try:
        work()
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return True
        raise
    return False
