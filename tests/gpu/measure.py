"""Clocks of a GPU: seconds of work after waiting for it, peak memory, and the share of time that it is busy."""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

DEVICE = os.environ.get("QWENVL_KIT_GPU", "cuda")
CUDA = DEVICE == "cuda"


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], n: int = 10) -> list[float]:
    """Return the seconds of a first call, and then of `n` more, sorted."""
    times = []
    for _ in range(n + 1):
        wait()
        started = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - started)
    return [times[0], *sorted(times[1:])]


def in_ms(times: list[float]) -> dict[str, float]:
    """Return the first time, and median and largest of the others, in milliseconds."""
    first, *others = (round(1e3 * one, 3) for one in times)
    return {"first_ms": first, "ms": round(statistics.median(others), 3), "max_ms": max(others)}


@contextlib.contextmanager
def sdp(*, cudnn: bool) -> Iterator[None]:
    """Allow or forbid cuDNN's attention within the context."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def peak_gib() -> float:
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if CUDA else 0.0


def reset_peak() -> None:
    if CUDA:
        torch.cuda.reset_peak_memory_stats()


class Busy:
    """Share of time within the context in which the GPU does something, by NVML; None where that is not there."""

    share: float | None = None

    def __enter__(self) -> Busy:
        self._seen: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.share = round(statistics.mean(self._seen), 1) if self._seen else None

    def _look(self) -> None:
        with contextlib.suppress(Exception):  # without pynvml, or on a CPU
            while not self._stop.wait(0.05):
                self._seen.append(torch.cuda.utilization())
