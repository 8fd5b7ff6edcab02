"""Scheduling policy: which sequences run next, which are finished, which are preempted.

Finished sequences leave after each step and waiting ones join while others decode (in-flight batching: Yu et al. 2022,
Orca, https://www.usenix.org/conference/osdi22/presentation/yu).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenvl_kit._memory import in_words
from qwenvl_kit.inference.outputs import failed, finished, oom_error, overflow_error
from qwenvl_kit.inference.packing import MAX_ROWS, is_one_group
from qwenvl_kit.inference.row_limit import RowLimit
from qwenvl_kit.types import Result

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.inference.backend import RunControl
    from qwenvl_kit.inference.kv_slots import SlotManager
    from qwenvl_kit.inference.processor import Tokenization
    from qwenvl_kit.inference.sequence import Sequence
    from qwenvl_kit.inference.waiting_queue import WaitingQueue

_JOIN_SHARE = 8  # of all seats, one in so many is free before sequences join: a pass makes all others wait


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
        Its ``rows_in_flight``, ``stop_repetition`` and ``dtype``.
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
        self._limit = RowLimit(self._most_rows())
        waiting.widen(self._limit.most)
        self._noted_rows: int | None = None
        self._is_joining = False
        self._blocked_at = (0, 0)  # sequences that ran and waited when none of the latter could join

    @property
    def max_num_seqs(self) -> int:
        """The most sequences that run at once; memory may have lowered it."""
        return self._limit.now

    @property
    def n_free(self) -> int:
        """How many more sequences may run at once, if they are no longer than those that run."""
        return int(self._n_seats() - len(self._slots.sequences))

    def schedule(self) -> Prefill | Decode | None:
        """Return what runs next: prompts while there is room, else a decode step; None with nothing to run."""
        if self._may_join() and (batch := self._next_batch()):
            self._is_joining = True
            return Prefill(batch)
        self._is_joining = False
        if self._slots.sequences:
            return Decode(self._slots.compact())
        return None

    def postprocess(
        self,
        sequences: list[Sequence],
        tokens: list[int | None],
        explain: Callable[[Sequence], None] | None = None,
    ) -> Iterator[Result]:
        """Append a sampled token to each sequence, emit its text, and yield the results of finished sequences.

        `explain` is called with those that ask for maps, while their slots hold their keys.
        """
        for sequence, token in zip(sequences, tokens, strict=True):
            sequence.append_token(token, self._tokenization.eos_ids, stop_repetition=self._resolved.stop_repetition)
            if self._control.on_token is not None:
                sequence.emit_text(self._tokenization.decode, self._control.on_token)
        if explain is not None:
            for sequence in (one for one in sequences if one.asks_for_maps):
                explain(sequence)
        done = self._slots.release_finished()
        self._limit.count(len(done))
        yield from map(self._finish, done)

    def preempt(self) -> list[Result]:
        """Free all slots after memory ran out; preempted sequences wait again, and half as many run at once.

        A sequence that ran alone has an error instead, and the limit is lifted: only this one needed so much.
        """
        results = [self._finish(sequence) for sequence in self._slots.release_finished()]
        sequences = self._slots.preempt_all()
        if len(sequences) == 1:
            self._limit.lift()
            return [*results, oom_error(sequences[0])]
        self._limit.lower(len(sequences) // 2)
        self._control.note(f"Out of memory with {len(sequences)} sequences; continuing with at most {self._limit.now}.")
        self._waiting.put_back(sequences)
        return results

    def cancel(self) -> Iterator[Result]:
        """Yield ``cancelled`` for every sequence that is not finished."""
        for sequence in [*self._slots.sequences, *self._waiting.sequences]:
            yield Result(sequence.request.row, "cancelled")

    def _most_rows(self) -> int:
        asked, batch_size = self._resolved.rows_in_flight, self._resolved.batch_size
        if asked != "auto":
            return asked
        if self._slots.size.is_limited:
            return max(batch_size, MAX_ROWS["cpu" if self._slots.device.type == "cpu" else "cuda"])
        self._control.note(f"Free memory is unknown on this system; at most batch_size={batch_size} rows in flight.")
        return batch_size

    def _n_seats(self) -> float:
        return min(self._limit.now, self._slots.size.max_rows(self._slots.rooms()))

    def _may_join(self) -> bool:
        """Return whether waiting sequences may join now.

        A pass over prompts makes all running sequences wait. So seats are collected first, and then all are taken.
        """
        n_waiting, n_running, n_free = len(self._waiting.sequences), len(self._slots.sequences), self.n_free
        if not n_waiting or n_free < 1 or (n_running and self._blocked_at == (n_running, n_waiting)):
            return False
        if self._is_joining or not n_running:
            return True
        return n_free >= min(n_waiting, int(self._n_seats()) // _JOIN_SHARE)

    def _next_batch(self) -> list[Sequence]:
        rooms = self._slots.rooms()
        batch = self._waiting.next_batch(self.n_free, self._may_run)
        self._blocked_at = (0, 0) if batch else (len(rooms), len(self._waiting.sequences))
        if batch:
            self._note_rows(self._slots.rooms(batch))
        return batch

    def _may_run(self, sequences: list[Sequence]) -> bool:
        return is_one_group(sequences, self._slots.device) and self._slots.admits(sequences)

    def _note_rows(self, rooms: list[int]) -> None:
        """Note how many rows memory allows, where that is not what was asked for, and when it is half of that."""
        asked, most = self._resolved.rows_in_flight, self._limit.most
        n_rows = int(min(most, self._slots.size.max_rows(rooms)))
        n_bytes = self._slots.size.n_bytes(n_rows, rooms)
        if n_bytes is None or n_rows > (self._noted_rows or 2 * most) // 2 or (n_rows == asked):
            return
        self._noted_rows = n_rows
        if asked == "auto":
            rows = "1 row" if n_rows == 1 else f"{n_rows} rows"
            self._control.note(f"{rows} in flight ({in_words(n_bytes)} of keys and values).")
        else:
            self._control.note(
                f"Out of memory for {asked} sequences; continuing with at most {n_rows} ({in_words(n_bytes)} of keys "
                "and values)."
            )

    def _finish(self, sequence: Sequence) -> Result:
        if sequence.error is not None:
            return failed(sequence.request, sequence.error, "cutting an image into patches")
        if sequence.overflowed:
            return overflow_error(sequence, self._resolved.dtype)
        return finished(sequence, self._tokenization.decode)
