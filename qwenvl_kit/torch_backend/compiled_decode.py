"""Decode steps through `torch.compile`; on CUDA recorded as a graph and replayed without Python.

Every step has one shape: all slots of the cache and their whole capacity, used or not. So nothing is compiled twice,
and a graph is recorded only when the cache is resized.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.nn import functional

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.inference.oom import is_out_of_memory
from qwenvl_kit.torch_backend.cuda_graphs import CudaGraphRunner

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.torch_backend.cuda_graphs import Step

_MIN_SLOTS = 2  # torch compiles a size of one apart from all others


class CompiledSteps:
    """A compiled decode step; on a GPU a CUDA graph of it.

    Parameters
    ----------
    step : callable
        ``step(ids, positions, lengths, max_len)`` returns logits (B, V) of B rows, which attend to the first `max_len`
        tokens of their slots. It is idempotent.
    uses_graphs : bool
        Record the step as a CUDA graph.

    Attributes
    ----------
    warm_up_s : float
        Seconds spent on compiling and recording since the last notes.
    """

    def __init__(self, step: Step, *, uses_graphs: bool = False) -> None:
        self._step: Step = torch.compile(step, fullgraph=True, dynamic=True)
        self._uses_graphs, self._size = uses_graphs, (0, 0)
        self._ready: Callable[..., Tensor] | None = None
        self.warm_up_s = 0.0

    def take_notes(self) -> list[str]:
        """Return what is to be on record since the last call."""
        seconds, self.warm_up_s = self.warm_up_s, 0.0
        return [f"Decode steps were compiled in {seconds:.1f} s of this run."] if seconds else []

    def resize_cache(self, n_slots: int, capacity: int) -> int:
        """Discard what was recorded for another size of the cache, and return how many slots the cache needs."""
        self._size = (max(n_slots, _MIN_SLOTS) if n_slots else 0, capacity)
        self._ready = None  # its memory is freed
        return self._size[0]

    def __call__(self, ids: Tensor, positions: Tensor, lengths: Tensor, _max_len: int) -> Tensor:
        """Append a token (B,) to each of the first slots and return logits (B, V).

        Raises
        ------
        ConfigError
            torch cannot compile the step on this machine.
        """
        free = (0, self._size[0] - len(ids))
        # a free slot gets a token that the next sequence in it overwrites
        inputs = [functional.pad(given, free) for given in (ids, positions, lengths)]
        if self._ready is None:
            started = time.perf_counter()
            with _named_compile_errors():
                self._ready = self._prepare(inputs)
            self.warm_up_s += time.perf_counter() - started
        return self._ready(*inputs)[: len(ids)]

    def _prepare(self, inputs: Sequence[Tensor]) -> Callable[..., Tensor]:
        capacity = self._size[1]

        def step(*given: Tensor) -> Tensor:
            return self._step(*given, capacity)  # type: ignore[call-arg, arg-type]  # mypy counts no starred tensors

        if self._uses_graphs:
            return CudaGraphRunner(step, inputs)
        step(*inputs)
        return step


@contextlib.contextmanager
def _named_compile_errors() -> Iterator[None]:
    """Raise `ConfigError` with advice for a failed compilation, unless memory ran out."""
    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        if is_out_of_memory(error):
            raise
        cause = getattr(error, "inner_exception", error)
        first = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no reason given")
        raise ConfigError(
            f"torch_compile=True: torch cannot compile the decode step here ({type(cause).__name__}: {first}). Install "
            "a C++ compiler such as g++, and triton for CUDA, or leave torch_compile out."
        ) from error
