"""Which row sits in which slot of a model_runner's cache, how large that is, and what a row can take over from another.

What rows say and when they are done is their own affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwenvl_kit.inference.model_runner import PrefillChunk

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.inference.model_runner import ModelRunner
    from qwenvl_kit.inference.sequence import Sequence

_STEP = 64  # tokens by which a cache grows, so that it seldom does
# Tokens, and part of the prompt: a beginning that is shorter is sooner read again than taken over, since what follows a
# past is not attended to by the fastest kernels, which are causal; on GPUs that costs most.
MIN_SHARED_PREFIX = {"cpu": (8, 0.05), "cuda": (32, 0.5)}


class SlotManager:
    """The slots of a model_runner and the rows in them.

    Parameters
    ----------
    model_runner : ModelRunner
        Its cache is managed here and nowhere else.
    """

    def __init__(self, model_runner: ModelRunner) -> None:
        self._model_runner = model_runner
        self._slots: list[Sequence | None] = []
        self._size = (0, 0)  # slots and tokens that are reserved
        self._shared: list[list[tuple[int, int, int]]] = []  # of each stage: from slot, to slot, how many tokens

    @property
    def rows(self) -> list[Sequence]:
        """Rows that have a slot, in the order of slots."""
        return [row for row in self._slots if row is not None]

    def allocate(self, rows: list[Sequence], *, n_most: int) -> None:
        """Give each row a free slot of `n_most` at most, and make the cache as large as all need."""
        was_empty = not self.rows
        for row in rows:
            if None in self._slots:
                self._slots[self._slots.index(None)] = row
            else:
                self._slots.append(row)
        n_slots, capacity = len(self._slots), max(row.max_len for row in self.rows)
        capacity = -(-capacity // _STEP) * _STEP
        if was_empty and capacity * 2 < self._size[1]:  # a single long row must not make all others dear
            self._size = (0, 0)
        if n_slots > self._size[0] or capacity > self._size[1]:
            if n_slots > self._size[0]:  # rows come one after the other: do not grow by one each time
                n_slots = max(n_slots, min(2 * self._size[0], n_most))
            self._size = max(n_slots, self._size[0]), max(capacity, self._size[1])
            self._model_runner.resize_cache(*self._size)

    def slots_of(self, rows: list[Sequence]) -> list[int]:
        """Slots of rows."""
        return [self._slots.index(row) for row in rows]

    def plan_prefill(self, rows: list[Sequence], visual: list[Tensor]) -> list[list[PrefillChunk]]:
        """What rows that were just seated have to read, given the visual tokens of each.

        Returns
        -------
        list of list of PrefillChunk
            Stages: a row that takes over what another begins with is read after that one, and after `copy_prefixes` of
            its stage. Thus a picture's questions share the picture, and pictures the template before them.
        """
        stages: list[list[PrefillChunk]] = []
        self._shared = []
        read_in = {row: -1 for row in self.rows if row not in rows}  # stage of each row that can be taken over from
        device = self._model_runner.device
        least, least_part = MIN_SHARED_PREFIX["cpu" if device.type == "cpu" else "cuda"]
        for row, slot, seen in zip(rows, self.slots_of(rows), visual, strict=True):
            ids, positions = row.ids.to(device), row.positions().to(device)
            alike = {other: row.shared_prefix_len(other) for other in read_in}
            enough = max(alike.values(), default=0) - least  # a few tokens more are not worth a stage
            reader = min((other for other in alike if alike[other] > enough), key=read_in.__getitem__, default=row)
            past = alike.get(reader, 0)
            if past < max(least, least_part * len(ids)):
                past = 0
            stage = read_in[reader] + 1 if past else 0
            if stage == len(stages):
                stages.append([])
                self._shared.append([])
            if past:
                self._shared[stage].append((self._slots.index(reader), slot, past))
            unseen = seen[row.n_visual_in(past) :]
            visible = unseen if len(unseen) else None
            stages[stage].append(PrefillChunk(slot, ids[past:], positions[:, past:], past, visible))
            read_in[row] = stage
        return stages

    def copy_prefixes(self, stage: int) -> None:
        """Copy the beginnings that rows of a stage take over from others."""
        for source, target, length in self._shared[stage]:
            self._model_runner.copy_slot(source, target, length)

    def compact(self) -> list[Sequence]:
        """Move the last rows into free slots, so that rows stand in slots 0 to B-1; give them."""
        while None in self._slots:
            last = self._slots.pop()
            if last is not None:
                gap = self._slots.index(None)
                self._model_runner.copy_slot(len(self._slots), gap, last.n_tokens - 1)
                self._slots[gap] = last
        return self.rows

    def release_finished(self) -> list[Sequence]:
        """Free the slots of rows that are done, and wipe those of broken ones; give those rows."""
        done = [row for row in self.rows if row.is_done]
        for slot in self.slots_of([row for row in done if row.overflowed]):
            self._model_runner.zero_slot(slot)
        self._slots = [None if row is None or row.is_done else row for row in self._slots]
        while self._slots and self._slots[-1] is None:
            self._slots.pop()
        return done

    def preempt_all(self) -> list[Sequence]:
        """Free all slots and the memory they took; give their rows in the order in which they were asked."""
        rows = sorted(self.rows, key=lambda row: row.encoded.request.row)
        self._slots, self._size = [], (0, 0)
        self._model_runner.resize_cache(0, 0)
        return rows
