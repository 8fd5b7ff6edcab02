"""Scheduling policy: which sequences run next, which are finished, which are preempted.

Finished sequences leave after each step and waiting ones join while others decode (in-flight batching: Yu et al. 2022,
Orca, https://www.usenix.org/conference/osdi22/presentation/yu).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenvl_kit.inference.outputs import failed, finished, oom_error, overflow_error
from qwenvl_kit.types import Result

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.inference.backend import RunControl
    from qwenvl_kit.inference.kv_slots import SlotManager
    from qwenvl_kit.inference.processor import Tokenization
    from qwenvl_kit.inference.sequence import Sequence
    from qwenvl_kit.inference.waiting_queue import WaitingQueue


@dataclass(frozen=True, slots=True)
class Prefill:
    """Sequences whose prompts run next."""

    sequences: list[Sequence]


@dataclass(frozen=True, slots=True)
class Decode:
    """Sequences that generate one token each; they are in slots 0 to B-1."""

    sequences: list[Sequence]


class Scheduler:
    """Decide what runs next, and turn sampled tokens into results.

    Parameters
    ----------
    waiting : WaitingQueue
        Sequences that have no slot yet.
    slots : SlotManager
        Sequences that have one.
    tokenization : Tokenization
        Its ``decode`` and ``eos_ids``.
    resolved : ResolvedConfig
        Its ``batch_size``, ``stop_repetition`` and ``dtype``.
    control : RunControl
        Its ``on_token`` and ``note``.
    """

    def __init__(
        self,
        waiting: WaitingQueue,
        slots: SlotManager,
        tokenization: Tokenization,
        resolved: ResolvedConfig,
        control: RunControl,
    ) -> None:
        self._waiting, self._slots, self._tokenization = waiting, slots, tokenization
        self._resolved, self._control = resolved, control
        self._max_num_seqs = resolved.batch_size

    @property
    def max_num_seqs(self) -> int:
        """The most sequences that run at once; memory may have lowered it."""
        return self._max_num_seqs

    @property
    def n_free(self) -> int:
        """How many more sequences may run at once."""
        return self._max_num_seqs - len(self._slots.sequences)

    def schedule(self) -> Prefill | Decode | None:
        """Return what runs next: prompts while there is room, else a decode step; None with nothing to run."""
        if self._waiting.sequences and self.n_free:
            return Prefill(self._waiting.next_batch(self.n_free))
        if self._slots.sequences:
            return Decode(self._slots.compact())
        return None

    def postprocess(self, sequences: list[Sequence], tokens: list[int | None]) -> Iterator[Result]:
        """Append a sampled token to each sequence, emit its text, and yield the results of finished sequences."""
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.append_token(token, self._tokenization.eos_ids, stop_repetition=self._resolved.stop_repetition)
            if self._control.on_token is not None:
                sequence.emit_text(self._tokenization.decode, self._control.on_token)
        yield from map(self._finish, self._slots.release_finished())

    def preempt(self) -> list[Result]:
        """Free all slots after memory ran out; preempted sequences wait again, and half as many run at once.

        A sequence that ran alone has an error instead, and the limit is lifted: only this one needed so much.
        """
        results = [self._finish(sequence) for sequence in self._slots.release_finished()]
        sequences = self._slots.preempt_all()
        if len(sequences) == 1:
            self._max_num_seqs = self._resolved.batch_size
            return [*results, oom_error(sequences[0])]
        self._max_num_seqs = len(sequences) // 2
        self._control.note(
            f"Out of memory with {len(sequences)} sequences; continuing with at most {self._max_num_seqs}."
        )
        self._waiting.put_back(sequences)
        return results

    def cancel(self) -> Iterator[Result]:
        """Yield ``cancelled`` for every sequence that is not finished."""
        for sequence in [*self._slots.sequences, *self._waiting.sequences]:
            yield Result(sequence.request.row, "cancelled")

    def _finish(self, sequence: Sequence) -> Result:
        if sequence.error is not None:
            return failed(sequence.request, sequence.error, "cutting an image into patches")
        if sequence.overflowed:
            return overflow_error(sequence, self._resolved.dtype)
        return finished(sequence, self._tokenization.decode)
