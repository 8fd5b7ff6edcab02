"""Slots of the KV cache: which sequence has which, how large the cache is, and which prefixes are copied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qwenvl_kit.inference.cache_size import CacheSize
from qwenvl_kit.inference.model_runner import PrefillChunk

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from qwenvl_kit.inference.model_runner import ModelRunner
    from qwenvl_kit.inference.sequence import Sequence

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
    size : CacheSize, optional
        Decides how large the cache becomes; by default nothing limits it.
    """

    def __init__(self, model_runner: ModelRunner, size: CacheSize | None = None) -> None:
        self._model_runner = model_runner
        self._slots: list[Sequence | None] = []
        self.size = size or CacheSize()

    @property
    def sequences(self) -> list[Sequence]:
        """Sequences that have a slot, in the order of slots."""
        return [sequence for sequence in self._slots if sequence is not None]

    @property
    def device(self) -> torch.device:
        """Device of the model's inputs."""
        return self._model_runner.device

    def rooms(self, sequences: Iterable[Sequence] = ()) -> list[int]:
        """Return the most tokens of each sequence that has a slot, and of each of `sequences`."""
        return [sequence.max_len for sequence in (*self.sequences, *sequences)]

    def admits(self, sequences: list[Sequence]) -> bool:
        """Return whether sequences may join those that have a slot."""
        return self.size.admits(self.rooms(sequences))

    def allocate(self, sequences: list[Sequence], *, max_slots: int) -> None:
        """Give each sequence a free slot, and resize the cache to what all need, to `max_slots` slots at most."""
        rooms = self.rooms(sequences)
        size = self.size.resized(rooms, max(len(self._slots), len(rooms)), max_slots)
        if size[0] < len(self._slots):
            self.compact()
        if size != self.size.now:
            self._model_runner.resize_cache(*size)
            self.size.now = size
        for sequence in sequences:
            if None in self._slots:
                self._slots[self._slots.index(None)] = sequence
            else:
                self._slots.append(sequence)

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
        self._slots, self.size.now = [], (0, 0)
        self._model_runner.resize_cache(0, 0)
        return sequences

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
