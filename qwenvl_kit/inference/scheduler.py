"""Requests in, results out as soon as each is done: the decode loop that every backend with a `ModelRunner` shares.

Rows that finish leave at once and waiting rows join while others decode, so no step is spent on a row that has said
all, nor a slot on none (in-flight batching: Yu et al. 2022, Orca, https://www.usenix.org/conference/osdi22/presentation/yu).
How a model computes is not known here; frames and URLs neither.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from qwenvl_kit.inference.encoder_cache import ImageEncodingError
from qwenvl_kit.inference.kv_slots import SlotManager
from qwenvl_kit.inference.oom import free_memory, is_out_of_memory
from qwenvl_kit.inference.outputs import answered, failed, overflowed, too_large
from qwenvl_kit.inference.processor import InputProcessor
from qwenvl_kit.inference.sampler import Sampler
from qwenvl_kit.inference.sequence import Row
from qwenvl_kit.inference.waiting_queue import WaitingQueue
from qwenvl_kit.types import Result

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.checkpoints.preflight import Tokens
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.inference.backend import Control, Feed
    from qwenvl_kit.inference.encoder_cache import EncoderCache
    from qwenvl_kit.inference.model_runner import ModelRunner
    from qwenvl_kit.inference.processor import Encoded


@dataclass(frozen=True, slots=True)
class Language:
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
    decode: Callable[[Sequence[int]], str] = field(repr=False)
    eos_ids: tuple[int, ...]
    image_id: int
    merge: int

    @classmethod
    def of(cls, processor: Any, context: int, tokens: Tokens) -> Language:
        """Return those of a checkpoint: of its processor, its context length and its special tokens."""
        tokenizer = processor.tokenizer

        def decode(ids: Sequence[int]) -> str:
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
    stepper: ModelRunner, eyes: EncoderCache, language: Language, feed: Feed, resolved: ResolvedConfig, control: Control
) -> Iterator[Result]:
    """Answer what the feed gives, one token of every row at hand after the other.

    Parameters
    ----------
    stepper : ModelRunner
        The model; its slots are this loop's while it runs, and empty afterwards.
    eyes : EncoderCache
        Look at pictures through the same stepper.
    language : Language
        The checkpoint's tokens.
    feed : Feed
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
    eyes.open(resolved.decode)
    loop = _Loop(stepper, eyes, language, feed, resolved, control)
    try:
        yield from loop.run()
    finally:
        stepper.reserve(0, 0)


class _Loop:
    def __init__(
        self,
        stepper: ModelRunner,
        eyes: EncoderCache,
        language: Language,
        feed: Feed,
        resolved: ResolvedConfig,
        control: Control,
    ) -> None:
        self._stepper, self._eyes, self._language = stepper, eyes, language
        self._feed, self._effective, self._control = feed, resolved, control
        self._waiting = WaitingQueue(resolved.batch_size)
        self._is_over = False  # the feed has no more
        self._cut_short: dict[int, Row] = {}  # rows that lost their slots when memory ran out, by their number
        self._seats = SlotManager(stepper)
        self._n_most = resolved.batch_size
        self._failures: list[Result] = []  # of rows that lost their slots before the model ran
        self._chooser = Sampler(resolved, language.eos_ids)

    def run(self) -> Iterator[Result]:
        """Take, read or step, let go, until there is no more."""
        while not self._control.cancel.is_set():
            yield from self._take()
            if self._free and self._waiting.rows:
                ran_out = _runs_out_of_memory(self._read)
            elif self._seats.rows:
                ran_out = _runs_out_of_memory(self._step)
            elif self._is_over:
                return
            else:
                continue
            if ran_out:
                yield from self._use_less_memory()
            yield from self._let_go()
        yield from (Result(row.encoded.request.row, "cancelled") for row in self._seats.rows)
        yield from (Result(encoded.request.row, "cancelled") for encoded in self._waiting.rows)

    @property
    def _free(self) -> int:
        return self._n_most - len(self._seats.rows)

    def _take(self) -> Iterator[Result]:
        """Take requests while there is room for rows; wait for one only when there is nothing else to do."""
        if self._is_over or not self._free:
            return
        requests = self._waiting.top_up(self._feed, block=not self._seats.rows)
        self._is_over = requests is None
        for request in requests or ():
            try:
                self._waiting.rows.append(self._language.encoder.encode(request))
            except Exception as error:  # noqa: BLE001  # a tokenizer or template refused this row
                yield failed(request, error, "encoding the prompt")

    def _read(self) -> None:
        """Let rows join: see their pictures, read their prompts, choose their first tokens."""
        started = time.perf_counter()
        rows = [self._begin(encoded) for encoded in self._waiting.next_batch(self._free)]
        self._seats.seat(rows, n_most=self._n_most)
        rows, visual = self._see(rows)
        if not rows:
            return
        logits: dict[int, Tensor] = {}
        for stage, readings in enumerate(self._seats.readings(rows, visual)):
            self._seats.share(stage)
            slots = [reading.slot for reading in readings]
            logits |= dict(zip(slots, self._stepper.read(readings), strict=True))
        self._say(rows, torch.stack([logits[slot] for slot in self._seats.slots_of(rows)]), started)

    def _see(self, rows: list[Row]) -> tuple[list[Row], list[Tensor]]:
        """Visual tokens of rows; those whose pictures cannot be cut lose their slots."""
        while rows:
            try:
                return rows, self._eyes.see([row.encoded for row in rows])
            except ImageEncodingError as fault:
                for row in rows:
                    row.is_broken = fault.sight in row.encoded.sights
                    if row.is_broken:
                        self._failures.append(failed(row.encoded.request, fault.cause, "cutting the picture"))
                rows = [row for row in rows if not row.is_broken]
                self._seats.leave()
        return rows, []

    def _begin(self, encoded: Encoded) -> Row:
        language = self._language
        return self._cut_short.pop(encoded.request.row, None) or Row(
            encoded, image_id=language.image_id, merge=language.merge, device=self._stepper.device
        )

    def _step(self) -> None:
        """Append its newest token to each row's slot and choose the next."""
        started = time.perf_counter()
        rows = self._seats.close_gaps()
        ids = torch.tensor([row.said[-1] for row in rows])
        positions = torch.tensor([row.position for row in rows])
        lengths = torch.tensor([row.n_tokens - 1 for row in rows])
        device = self._stepper.device
        logits = self._stepper.step(ids.to(device), positions.to(device), lengths.to(device))  # (B, V)
        self._say(rows, logits, started)

    def _say(self, rows: Sequence[Row], logits: Tensor, started: float) -> None:
        """Choose a token for each row from logits (B, V), and tell whoever listens."""
        tokens = self._chooser.choose(logits, rows)
        seconds = (time.perf_counter() - started) / len(rows)
        for row, token in zip(rows, tokens, strict=True):
            row.seconds += seconds
            row.hear(token, self._language.eos_ids, stops_loops=self._effective.stop_repetition)
            if self._control.on_token is not None:
                row.tell(self._language.decode, self._control.on_token)

    def _let_go(self) -> Iterator[Result]:
        failures, self._failures = self._failures, []
        yield from failures
        for row in self._seats.leave():
            if row.ending is None:
                yield overflowed(row.encoded, self._effective.dtype)
            else:
                yield answered(row.encoded, row.said, row.ending, self._language.decode, seconds=row.seconds)

    def _use_less_memory(self) -> Iterator[Result]:
        """Fewer rows at once; those that were cut short are read again and go on where they stopped."""
        rows = self._seats.clear()
        self._eyes.forget()
        free_memory()
        if len(rows) == 1:
            yield too_large(rows[0].encoded)
            self._n_most = self._effective.batch_size  # it was this row that needed so much
            return
        self._n_most = len(rows) // 2
        self._control.note(f"memory ran out at {len(rows)} pictures at once; went on with {self._n_most}")
        self._cut_short |= {row.encoded.request.row: row for row in rows}
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
