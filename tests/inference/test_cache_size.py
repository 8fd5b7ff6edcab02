"""How large the KV cache becomes, and which sequences share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.inference import cache_memory
from qwenvl_kit.inference.cache_memory import CacheMemory
from qwenvl_kit.inference.cache_size import CAPACITY_STEP, MAX_WASTE, CacheSize
from qwenvl_kit.inference.row_limit import RowLimit

GIB = 2**30
LARGE, SMALL = 15_800, 556  # tokens of 12 megapixels and of 448 pixels a side, with 256 of the answer


class Scarce:
    """Memory for so many tokens, of which a cache of `size` holds some."""

    bytes_per_token = 57_344

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens, self.size = n_tokens, CacheSize(self)  # type: ignore[arg-type]

    def max_tokens(self, n_held: int, *, reserve: bool) -> int:
        return self.n_tokens


def test_a_large_row_runs_apart_and_rows_of_like_length_together() -> None:
    size = CacheSize()

    assert size.admits([LARGE])
    assert size.admits([LARGE] * 256)
    assert size.admits([SMALL] * 31)
    assert size.admits([300, 420, 556, 900, 1600] * 20)
    assert not size.admits([*[SMALL] * 31, LARGE])
    assert size.admits([*[SMALL] * 2, LARGE]), "beside few others it wastes little"


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=60))
def test_the_cache_holds_at_most_a_few_times_what_its_rows_need(rooms: list[int]) -> None:
    size = CacheSize()
    shared: list[int] = []
    for room in rooms:
        if size.admits([*shared, room]):
            shared.append(room)
            size.now = size.resized(shared, len(shared), 256)
        assert size.now[0] * size.now[1] <= MAX_WASTE * sum(-(-one // 64) * 64 for one in shared)
        assert size.now[0] >= len(shared)
        assert size.now[1] >= max(shared)


@given(st.integers(1_000, 100_000), st.lists(st.integers(1, 20_000), min_size=1, max_size=60))
def test_no_cache_of_two_rows_or_more_exceeds_memory(n_tokens: int, rooms: list[int]) -> None:
    memory = Scarce(n_tokens)
    shared: list[int] = []
    for room in rooms:
        if memory.size.admits([*shared, room]):
            shared.append(room)
            memory.size.now = memory.size.resized(shared, len(shared), 256)
        else:
            shared = shared[1:]  # one has finished
        assert memory.size.now[0] * memory.size.now[1] <= max(n_tokens, max(rooms) + 63), "one row always runs"


def test_it_doubles_as_rows_arrive_but_not_beyond_memory_nor_the_rows_allowed() -> None:
    memory = Scarce(6 * 320)
    size = memory.size
    for n_rows, slots in [(1, 1), (2, 2), (3, 4), (5, 6)]:
        assert size.max_rows([300]) == 6
        size.now = size.resized([300] * n_rows, n_rows, 256)
        assert size.now == (slots, 320)

    assert not size.admits([300] * 7)
    assert CacheSize().resized([300] * 3, 3, 3) == (3, 320)


def test_it_shrinks_to_what_is_needed_once_it_is_four_times_what_its_rows_need() -> None:
    size = CacheSize()
    size.now = (4, 16_000)

    assert size.resized([SMALL] * 4, 4, 256) == (4, 576), "a large row has left"
    size.now = (32, 576)
    assert size.resized([SMALL] * 9, 9, 256) == (32, 576)
    assert size.resized([LARGE], 30, 256) == (1, 15_808), "it takes one slot of its length, not 32"


def test_on_a_gpu_it_grows_in_larger_steps() -> None:
    size = CacheSize(step=CAPACITY_STEP["cuda"])

    assert size.resized([257], 1, 8) == (1, 512)
    assert size.admits([1, 60, 256] * 9)


@pytest.mark.parametrize(
    ("free", "reserve", "n_tokens"),
    [
        ({0: 10.0}, False, 10 * GIB // 1000),
        ({0: 10.0}, True, (10 * GIB - 1.5e9 - 0.05 * 24 * GIB) // 1000),
        ({0: 1.0}, True, 0),
        ({0: 10.0, 1: 2.0}, False, 2 * GIB * 2 // 1000),
    ],
)
def test_tokens_are_counted_on_the_gpu_with_the_least_room(
    free: Mapping[int, float], reserve: bool, n_tokens: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (int((free[device.index] - 0.5) * GIB), 24 * GIB))
    monkeypatch.setattr("torch.cuda.memory_reserved", lambda _: GIB)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda _: GIB // 2)
    memory = CacheMemory(1000, {torch.device("cuda", index): 14 for index in free})

    assert memory.max_tokens(0, reserve=reserve) == int(n_tokens)
    assert memory.max_tokens(3 * GIB // 1000, reserve=False) >= 3 * GIB // 1000 + min(free.values()) * GIB // 1000


@pytest.mark.parametrize(
    ("device", "left"), [("cuda:0", 10 * GIB - 1.5e9 - GIB), ("cpu", 5 * GIB), ("cuda:0+cpu", 5 * GIB)]
)
def test_what_a_cache_may_take_depends_on_the_device(device: str, left: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (0, 20 * GIB))

    assert cache_memory.after_reserve(device, 10 * GIB) == pytest.approx(left)


def test_on_the_cpu_half_of_what_the_container_leaves_is_kept_and_unknown_stays_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = CacheMemory(1000, {torch.device("cpu"): 28})
    left: list[Any] = [3_000_000, 2_000_000, 3_000_000, None]
    monkeypatch.setattr(cache_memory, "available_memory", lambda: left.pop(0))

    assert memory.max_tokens(0, reserve=True) == 1500
    assert memory.max_tokens(1000, reserve=True) == 1500, "what the cache took comes from the same half"
    assert memory.max_tokens(0, reserve=False) == 3000
    assert memory.max_tokens(0, reserve=True) is None


def test_the_limit_grows_again_after_enough_rows_and_waits_longer_after_each_failure() -> None:
    limit = RowLimit(16)
    limit.lower(8)
    limit.count(31)
    assert limit.now == 8
    limit.count(1)
    assert limit.now == 10
    limit.count(1000)
    assert limit.now == 16, "never more than asked for"

    limit.lower(8)
    limit.count(32)
    assert limit.now == 8
    limit.count(32)
    assert limit.now == 10
