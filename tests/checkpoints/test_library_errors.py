"""Libraries say in many words that memory ran out or that a GPU is lost."""

from __future__ import annotations

import errno
import weakref

import pytest

from qwenvl_kit.checkpoints.library_errors import is_device_lost, is_out_of_memory, release_frames


class OutOfMemoryError(RuntimeError):
    """Torch's, by name."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
    ],
    ids=str,
)
def test_memory_that_ran_out_is_recognised_in_every_form(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        RuntimeError("out of resource: shared memory, Required: 107008, Hardware limit: 101376"),  # triton
    ],
    ids=str,
)
def test_other_errors_are_not_taken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_memory_that_ran_out_while_a_graph_was_recorded_is_recognised() -> None:
    def record() -> None:
        try:
            raise OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    with pytest.raises(RuntimeError) as caught:
        record()

    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("CUDA error: operation failed due to a previous error during capture"))


def test_a_lost_gpu_is_told_from_a_full_one() -> None:
    assert is_device_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_device_lost(RuntimeError("CUDA error: out of memory"))


def test_an_error_that_is_kept_keeps_nothing_of_its_frames_and_of_those_before() -> None:
    class Large:
        pass

    held: list[weakref.ref[Large]] = []

    def fail(depth: int) -> None:
        large = Large()
        held.append(weakref.ref(large))
        if depth == 0:
            raise KeyError("the first")
        try:
            fail(depth - 1)
        except KeyError as error:
            raise ValueError("the second") from error

    with pytest.raises(ValueError, match="the second") as caught:
        fail(1)
    assert all(one() is not None for one in held)
    release_frames(caught.value)

    assert [one() for one in held] == [None, None]
