"""CUDA graphs on the CPU: a recording holds its inputs and result, and a replay computes the result from them anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from qwenvl_kit.torch_backend import cuda_graphs, model_runner
from qwenvl_kit.torch_backend.cuda_graphs import RecordedSteps


class Replay:
    """A recording in memory of its own."""

    made: list[tuple[int, ...]] = []  # noqa: RUF012  # shapes of the results of all recordings

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor], **_: Any) -> None:
        self._function, self._inputs = function, [given.clone() for given in inputs]
        self.made.append(tuple(function(*self._inputs).shape))

    def __call__(self, *inputs: Tensor) -> Tensor:
        for held, given in zip(self._inputs, inputs, strict=True):
            assert held.shape == given.shape
            held.copy_(given)
        return self._function(*self._inputs).clone()


@contextmanager
def replay_on_cpu() -> Iterator[list[tuple[int, ...]]]:
    """Record all decode steps on the CPU; give the shapes of what is recorded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Stream", object)
        patch.setattr(torch.cuda, "device", lambda _: nullcontext())
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        patch.setattr(cuda_graphs, "CudaGraphRunner", Replay)
        patch.setattr(
            model_runner.TorchModelRunner,
            "_make_steps",
            lambda runner, **_: RecordedSteps(runner._eager_step, reads_whole_slots=runner.step_kernel_fault is None),
        )
        Replay.made = []
        yield Replay.made
