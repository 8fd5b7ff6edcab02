"""Decode steps of a model runner: filled slots, their times, and what a profiler sees of one."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from gpu.measure import DEVICE, wait

from qwenvl_kit.inference.model_runner import PrefillChunk


def fill(runner: Any, n_rows: int, length: int) -> None:
    """Prefill prompts of one length in all slots, with room for the steps that are measured."""
    runner.resize_cache(0, 0)
    runner.resize_cache(n_rows, length + 320 - length % 64)
    ids = torch.arange(length, device=DEVICE) % 400 + 20
    positions = torch.arange(length, device=DEVICE).expand(3, -1)
    runner.prefill([PrefillChunk(slot, ids, positions) for slot in range(n_rows)])


def times_of_steps(runner: Any, n_rows: int, length: int, n_steps: int) -> list[float]:
    """Return the seconds of steps of growing length; the first may record a graph or choose kernels."""
    ids, times = torch.full((n_rows,), 30, device=DEVICE), []
    for held in range(length, length + n_steps):
        lengths = torch.full((n_rows,), held, device=DEVICE)
        wait()
        started = time.perf_counter()
        runner.decode(ids, lengths, lengths, held + 1)
        wait()
        times.append(time.perf_counter() - started)
    return times


def profile_of(runner: Any, n_rows: int, length: int) -> dict[str, Any]:
    """Count kernels and waits of a step, and their time by kernel."""
    held = torch.full((n_rows,), length, device=DEVICE)
    arguments = torch.full((n_rows,), 30, device=DEVICE), held, held, length + 1
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        runner.decode(*arguments)
        wait()
    kernels = [event for event in profile.key_averages() if str(event.device_type).endswith("CUDA")]
    by_time = sorted(kernels, key=lambda event: -event.self_device_time_total)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            runner.decode(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {
        "kernels": sum(event.count for event in kernels),
        "waits": sum("synchron" in str(one.message) for one in caught),
        "ms_by_kernel": {one.key[:60]: round(one.self_device_time_total / 1e3, 2) for one in by_time[:12]},
    }
