"""A picture that stands in several places is loaded once and kept no longer than it is wanted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

import pytest
from faults import gray, within

from qwenvl_kit.errors import RowError
from qwenvl_kit.records import ImageSource, Picture
from qwenvl_kit.runner import once as once_module
from qwenvl_kit.runner.once import Once


def source(name: str) -> ImageSource:
    return ImageSource("path", name, name, name)


class Loader:
    """Counts what it loads."""

    def __init__(self, failing: str | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self._failing = failing

    def __call__(self, one: ImageSource) -> Picture:
        self.counts[one.key] += 1
        if one.key == self._failing:
            raise RowError("fetch", f"{one.label} is gone")
        return Picture(gray(0), one.key, (56, 56))


def once(loader: Loader, uses: Mapping[str, int]) -> Once:
    return Once(loader, uses)


def test_a_shared_picture_is_loaded_once_and_forgotten_after_its_last_use() -> None:
    loader = Loader()
    load = once(loader, {"a": 3})

    first, second = load(source("a")), load(source("a"))
    assert first is second
    assert load.n_bytes == first.pixels.nbytes
    load(source("a"))

    assert loader.counts == {"a": 1}
    assert load.n_bytes == 0


def test_a_picture_that_stands_alone_is_not_kept() -> None:
    loader = Loader()
    load = once(loader, {})

    load(source("a"))

    assert load.n_bytes == 0


def test_a_shared_fault_is_found_once_and_told_everyone() -> None:
    loader = Loader(failing="a")
    load = once(loader, {"a": 2})

    for _ in range(2):
        with pytest.raises(RowError, match="a is gone"):
            load(source("a"))

    assert loader.counts == {"a": 1}


def test_threads_that_want_one_picture_at_once_wait_for_one_load() -> None:
    loader, may_load = Loader(), threading.Event()

    def slow(one: ImageSource) -> Picture:
        assert may_load.wait(10)
        return loader(one)

    load = Once(slow, {"a": 8})
    got: list[Picture] = []
    threads = [threading.Thread(target=lambda: got.append(load(source("a"))), daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    may_load.set()
    within(10, lambda: [thread.join() for thread in threads])

    assert loader.counts == {"a": 1}
    assert len(got) == 8


def test_what_is_kept_stays_within_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once_module, "_MAX_BYTES", 3 * gray(0).nbytes)
    loader = Loader()
    load = once(loader, dict.fromkeys("abcdefgh", 2))

    for name in "abcdefgh":
        load(source(name))
        assert load.n_bytes <= 3 * gray(0).nbytes
    for name in "fghabcde":
        load(source(name))
        assert load.n_bytes <= 3 * gray(0).nbytes

    assert [name for name, n_loads in loader.counts.items() if n_loads == 1] == ["f", "g", "h"]
