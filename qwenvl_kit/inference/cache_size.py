"""Size the KV cache: which sequences share it, and how large the rectangle of slots and tokens becomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from qwenvl_kit.inference.cache_memory import CacheMemory

# Tokens by which a cache grows, so that it seldom does; on GPUs a new size also means new recordings of the steps.
CAPACITY_STEP = {"cpu": 64, "cuda": 256}
# Tokens of the cache per token that its sequences can have. All slots are as long as the longest: beside one image of
# 12 megapixels (15,800 tokens), 31 captions of 550 tokens take 29 GB of the 7B model instead of 1.9 GB.
MAX_WASTE = 4


class CacheSize:
    """The slots and tokens of a cache, and the most that memory allows.

    Parameters
    ----------
    memory : CacheMemory or None
        Measures free memory; None if it is unknown, and then nothing is limited.
    reserve : bool
        Keep memory for other uses.
    step : int
        Tokens by which it grows.

    Attributes
    ----------
    now : tuple of (int, int)
        Slots and tokens.

    Examples
    --------
    >>> size = CacheSize()
    >>> size.admits([556] * 32), size.admits([556] * 31 + [15_800])
    (True, False)
    """

    def __init__(
        self, memory: CacheMemory | None = None, *, reserve: bool = False, step: int = CAPACITY_STEP["cpu"]
    ) -> None:
        self._memory, self._reserve, self._step = memory, reserve, step
        self.now = (0, 0)
        self._measured_at: tuple[int, int] | None = None
        self._max_tokens = math.inf

    @property
    def is_limited(self) -> bool:
        """Whether free memory is known."""
        return self._budget() < math.inf

    def max_rows(self, rooms: Sequence[int]) -> float:
        """Return for how many sequences memory suffices, each as long as the longest of `rooms`; at least 1."""
        return max(1, _quotient(self._budget(), self._capacity(rooms))) if rooms else math.inf

    def n_bytes(self, n_rows: int, rooms: Sequence[int]) -> int | None:
        """Return the bytes of a cache of `n_rows`, each as long as the longest of `rooms`; None if unknown."""
        return None if self._memory is None else n_rows * self._capacity(rooms) * self._memory.bytes_per_token

    def admits(self, rooms: Sequence[int]) -> bool:
        """Return whether sequences of at most so many tokens may share the cache; a single one always may."""
        if len(rooms) < 2:
            return True
        n_tokens = len(rooms) * self._capacity(rooms)
        return n_tokens <= MAX_WASTE * self._content(rooms) and n_tokens <= self._budget()

    def resized(self, rooms: Sequence[int], n_slots: int, max_slots: int) -> tuple[int, int]:
        """Return the slots and tokens for all sequences, of which the last slot in use is ``n_slots - 1``.

        It grows by doubling. It shrinks to what is needed once it wastes too much, or more than memory allows.
        """
        capacity = self._capacity(rooms)
        slots, tokens = self.now[0], max(capacity, self.now[1])
        if n_slots > slots:  # sequences arrive one after the other: do not grow by one each time
            slots = max(n_slots, int(min(2 * slots, max_slots, _quotient(self._budget(), tokens))))
        if slots * tokens > MAX_WASTE * self._content(rooms) or slots * tokens > self._budget():
            return len(rooms), capacity
        return slots, tokens

    def _budget(self) -> float:
        """Return the most tokens that the cache may have."""
        if self._measured_at != self.now:  # a GPU's driver takes a while to say
            held = self.now[0] * self.now[1]
            most = None if self._memory is None else self._memory.max_tokens(held, reserve=self._reserve)
            self._max_tokens = math.inf if most is None else most
            self._measured_at = self.now
        return self._max_tokens

    def _capacity(self, rooms: Sequence[int]) -> int:
        return capacity_of(rooms, self._step)

    def _content(self, rooms: Sequence[int]) -> int:
        return sum(capacity_of([room], self._step) for room in rooms)


def capacity_of(rooms: Sequence[int], step: int) -> int:
    """Return the tokens of each slot for sequences of at most so many, in steps of `step`."""
    return -(-max(rooms) // step) * step


def capacity_step(device: torch.device | str) -> int:
    """Return the tokens by which the cache grows on a device."""
    return CAPACITY_STEP["cpu" if str(device) == "cpu" else "cuda"]


def _quotient(whole: float, part: int) -> float:
    return whole if math.isinf(whole) else whole // part
