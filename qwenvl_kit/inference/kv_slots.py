"""Slots of the KV cache: which sequence has which, how large the cache is, and which prefixes are copied."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qwenvl_kit.inference.model_runner import PrefillChunk

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.inference.model_runner import ModelRunner
    from qwenvl_kit.inference.sequence import Sequence

_CAPACITY_STEP = 64  # tokens by which a cache grows, so that it seldom does
# Tokens, and part of the prompt: a shorter prefix is prefilled again rather than copied, since attention to cached
# tokens does not use the fastest kernels, which are causal; on GPUs that costs most.
MIN_SHARED_PREFIX = {"cpu": (8, 0.05), "cuda": (32, 0.5)}


@dataclass(frozen=True, slots=True)
class PrefillStage:
    """Chunks of one prefill pass, and the prefixes to copy before it.

    Attributes
    ----------
    chunks : list of PrefillChunk
        The tokens to prefill.
    copies : list of (int, int, int)
        Source slot, target slot and number of tokens.
    """

    chunks: list[PrefillChunk] = field(default_factory=list)
    copies: list[tuple[int, int, int]] = field(default_factory=list)


class SlotManager:
    """Assign cache slots to sequences.

    Parameters
    ----------
    model_runner : ModelRunner
        Holds the cache, whose size only this object changes during a run.
    """

    def __init__(self, model_runner: ModelRunner) -> None:
        self._model_runner = model_runner
        self._slots: list[Sequence | None] = []
        self._size = (0, 0)  # slots and tokens of the cache

    @property
    def sequences(self) -> list[Sequence]:
        """Sequences that have a slot, in the order of slots."""
        return [sequence for sequence in self._slots if sequence is not None]

    def allocate(self, sequences: list[Sequence], *, max_slots: int) -> None:
        """Give each sequence a free slot, and grow the cache to what all need, to `max_slots` slots at most."""
        was_empty = not self.sequences
        for sequence in sequences:
            if None in self._slots:
                self._slots[self._slots.index(None)] = sequence
            else:
                self._slots.append(sequence)
        capacity = max(sequence.max_len for sequence in self.sequences)
        self._grow(-(-capacity // _CAPACITY_STEP) * _CAPACITY_STEP, max_slots, may_shrink=was_empty)

    def slots_of(self, sequences: list[Sequence]) -> list[int]:
        """Return the slot of each sequence."""
        return [self._slots.index(sequence) for sequence in sequences]

    def plan_prefill(self, sequences: list[Sequence], image_features: list[Tensor]) -> list[PrefillStage]:
        """Plan the prefill of sequences that just got their slots, given the visual tokens of each.

        A sequence that shares a prefix with another is prefilled in a later stage, and copies the prefix. So questions
        about one image share the image, and images share the template before them.
        """
        stages: list[PrefillStage] = []
        stage_of = {one: -1 for one in self.sequences if one not in sequences and not one.is_finished}
        device = self._model_runner.device
        for sequence, slot, features in zip(sequences, self.slots_of(sequences), image_features, strict=True):
            source, length = self._shared_prefix(sequence, stage_of)
            stage = stage_of[source] + 1 if length else 0
            if stage == len(stages):
                stages.append(PrefillStage())
            if length:
                stages[stage].copies.append((self._slots.index(source), slot, length))
            ids, positions = sequence.ids.to(device), sequence.positions().to(device)
            rest = features[sequence.n_visual_in(length) :]
            stages[stage].chunks.append(
                PrefillChunk(slot, ids[length:], positions[:, length:], length, rest if len(rest) else None)
            )
            stage_of[sequence] = stage
        return stages

    def copy_prefixes(self, stage: PrefillStage) -> None:
        """Copy the shared prefixes of a stage, after the stages before it are prefilled."""
        for source, target, length in stage.copies:
            self._model_runner.copy_slot(source, target, length)

    def compact(self) -> list[Sequence]:
        """Move the last sequences into free slots, and return those in slots 0 to B-1."""
        while None in self._slots:
            last = self._slots.pop()
            if last is not None:
                gap = self._slots.index(None)
                self._model_runner.copy_slot(len(self._slots), gap, last.n_tokens - 1)
                self._slots[gap] = last
        return self.sequences

    def release_finished(self) -> list[Sequence]:
        """Free the slots of finished sequences and return those; slots of overflowed ones are zeroed."""
        done = [sequence for sequence in self.sequences if sequence.is_finished]
        for slot in self.slots_of([sequence for sequence in done if sequence.overflowed]):
            self._model_runner.zero_slot(slot)
        self._slots = [None if one is None or one.is_finished else one for one in self._slots]
        while self._slots and self._slots[-1] is None:
            self._slots.pop()
        return done

    def preempt_all(self) -> list[Sequence]:
        """Free all slots and the cache; return the sequences in the order of their rows."""
        sequences = sorted(self.sequences, key=lambda sequence: sequence.request.row)
        self._slots, self._size = [], (0, 0)
        self._model_runner.resize_cache(0, 0)
        return sequences

    def _grow(self, capacity: int, max_slots: int, *, may_shrink: bool) -> None:
        if may_shrink and capacity * 2 < self._size[1]:  # a single long sequence must not make all others dear
            self._size = (0, 0)
        n_slots, size = len(self._slots), self._size
        if n_slots <= size[0] and capacity <= size[1]:
            return
        if n_slots > size[0]:  # sequences arrive one after the other: do not grow by one each time
            n_slots = max(n_slots, min(2 * size[0], max_slots))
        self._size = max(n_slots, size[0]), max(capacity, size[1])
        self._model_runner.resize_cache(*self._size)

    def _shared_prefix(self, sequence: Sequence, stage_of: dict[Sequence, int]) -> tuple[Sequence, int]:
        """Return the sequence of the earliest stage to copy from, and how many tokens; 0 if that does not pay."""
        least, least_part = MIN_SHARED_PREFIX["cpu" if self._model_runner.device.type == "cpu" else "cuda"]
        lengths = {other: sequence.shared_prefix_len(other) for other in stage_of}
        enough = max(lengths.values(), default=0) - least  # a few tokens more are not worth a stage
        source = min(
            (other for other in lengths if lengths[other] > enough), key=stage_of.__getitem__, default=sequence
        )
        length = lengths.get(source, 0)
        return source, length if length >= max(least, least_part * sequence.n_tokens) else 0
