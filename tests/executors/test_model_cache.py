"""A model that failed to load or whose GPU is lost leaves nothing behind, and is not used again."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from helpers.fake_backends import Script, ScriptedBackend, ScriptedSpec

from qwenvl_kit import BackendFailed, Config
from qwenvl_kit.executors.model_cache import ModelCache
from qwenvl_kit.inference.backend import Backend, RunControl


class Weights:
    """Half a model, in which modules refer to each other."""

    def __init__(self) -> None:
        self.itself = self


class FailingSpec(ScriptedSpec):
    error: BaseException
    held: weakref.ref[Weights]

    def load(self, control: RunControl | None = None) -> Backend:
        weights = Weights()
        object.__setattr__(self, "held", weakref.ref(weights))
        raise self.error


def failing(error: BaseException) -> FailingSpec:
    spec = FailingSpec(Config(backend="echo"), Script())
    object.__setattr__(spec, "error", error)
    return spec


def test_memory_that_runs_out_in_loading_is_told_with_a_remedy_and_frees_the_half_that_was_loaded() -> None:
    spec = failing(MemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))

    told = r"Out of memory while loading .*2\.00 GiB.*device_map='auto'"
    with pytest.raises(BackendFailed, match=told) as caught, ModelCache().acquire(spec):
        pass

    assert spec.held() is None, "the error is still held"
    assert isinstance(caught.value.__cause__, MemoryError)


def test_any_other_fault_of_loading_stays_itself_and_keeps_no_weights() -> None:
    spec = failing(KeyError("no such tensor"))

    with pytest.raises(KeyError, match="no such tensor"), ModelCache().acquire(spec):
        pass

    assert spec.held() is None


def test_a_load_that_fails_collects_what_it_made_alone() -> None:
    n_kept: list[int] = []

    class Watched(MemoryError):
        def __str__(self) -> str:  # asked for once loading has failed, before the collection
            n_kept.append(gc.get_freeze_count())
            return "out of memory"

    spec = failing(Watched())
    with pytest.raises(BackendFailed), ModelCache().acquire(spec):
        pass

    assert min(n_kept) > 10_000, "objects of libraries, whose collection keeps Ctrl-C waiting"
    assert gc.get_freeze_count() == 0
    assert spec.held() is None


class LostBackend(ScriptedBackend):
    n_closed = 0

    def close(self) -> None:
        LostBackend.n_closed += 1
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


class LostSpec(ScriptedSpec):
    def load(self, control: RunControl | None = None) -> Backend:
        super().load(control)
        return LostBackend(self.script)


@pytest.fixture
def lost() -> LostSpec:
    LostBackend.n_closed = 0
    return LostSpec(Config(backend="echo"), Script())


def use(cache: ModelCache, spec: Any, error: Exception | None = None) -> None:
    with cache.acquire(spec):
        if error is not None:
            raise error


def test_a_model_on_a_lost_gpu_is_dropped_and_the_remedy_is_told(lost: LostSpec) -> None:
    cache = ModelCache()
    fault = RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")

    with pytest.raises(BackendFailed, match=r"device-side assert triggered\).*Restart Python") as caught:
        use(cache, lost, fault)
    assert caught.value.__cause__ is fault
    assert LostBackend.n_closed == 1

    use(cache, lost)
    assert lost.script.n_loads == 2, "the broken one would fail for ever"


def test_a_model_stays_after_an_ordinary_fault(lost: LostSpec) -> None:
    cache = ModelCache()

    with pytest.raises(RuntimeError, match="shape mismatch"):
        use(cache, lost, RuntimeError("shape mismatch"))
    use(cache, lost)

    assert lost.script.n_loads == 1
