"""A decode step in, the same compiled by torch out, on CUDA recorded as a graph and replayed without Python.

Every step has one shape: all slots of the cache and all that these can hold, used or not, so that nothing is compiled
twice and a graph is recorded only when the cache changes its size. What a step computes is not known here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.inference.oom import is_out_of_memory

if TYPE_CHECKING:
    from torch import Tensor

    Step = Callable[[Tensor, Tensor, Tensor, int], Tensor]

_ATTENTION = "qwenvl_kit_packed_sdpa"  # in transformers' register
_LEAST_SLOTS = 2  # torch compiles a size of one apart from all others
_WARM_UPS = 3  # before a recording, as torch's notes on graphs have it


def attend_packed(text: Any) -> None:
    """Let the layers of a language model attend by `attend`; changed in place.

    Parameters
    ----------
    text : transformers.Qwen2_5_VLTextModel
        With ``sdpa``.
    """
    AttentionInterface.register(_ATTENTION, attend)
    text.config._attn_implementation = _ATTENTION


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Transformers' own sdpa, but heads that share keys are rows of one product for a single token.

    So does transformers, though not under torch.compile, where it repeats keys and values for each head:
    https://github.com/huggingface/transformers/blob/main/src/transformers/integrations/sdpa_attention.py.

    Parameters
    ----------
    module : transformers.Qwen2_5_VLAttention
    query : Tensor (B, H, T, d)
    key, value : Tensor (B, G, L, d)
    attention_mask : bool Tensor (B, 1, T, L) or None

    Returns
    -------
    tuple
        Attended values (B, T, H, d), and None for the weights.
    """
    n_rows, _, n_tokens, head = query.shape
    if n_tokens > 1 or attention_mask is None:
        whole: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return whole
    groups = query.reshape(n_rows, -1, module.num_key_value_groups, head)  # (B, G, H/G, d)
    attended = functional.scaled_dot_product_attention(groups, key, value, attention_mask, scale=options.get("scaling"))
    return attended.reshape(n_rows, 1, -1, head), None


class CompiledSteps:
    """Decode steps through `torch.compile`, and CUDA graphs where CUDA computes.

    Parameters
    ----------
    step : callable
        ``step(ids, positions, lengths, n_most)`` gives logits (B, V) of B rows that attend to `n_most` places of their
        slots at most. Called again with the same arguments it does the same.

    Attributes
    ----------
    warm_up_s : float
        Seconds spent on compiling and recording so far.
    """

    def __init__(self, step: Step) -> None:
        self._step: Step = torch.compile(step, fullgraph=True, dynamic=True)
        self._size = (0, 0)
        self._ready: Callable[..., Tensor] | None = None
        self.warm_up_s = 0.0

    def resize_cache(self, n_slots: int, capacity: int) -> int:
        """Take note of the cache's new size; gives how many slots it must have."""
        self._size = (max(n_slots, _LEAST_SLOTS) if n_slots else 0, capacity)
        self._ready = None  # recorded for memory that is let go
        return self._size[0]

    def __call__(self, ids: Tensor, positions: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, V) after one more token (B,) in each of the first slots.

        Raises
        ------
        ConfigError
            torch cannot compile the step here.
        """
        free = (0, self._size[0] - len(ids))
        # a slot that is free, or not in use yet, gets a token that whoever takes the slot will overwrite
        inputs = [functional.pad(given, free) for given in (ids, positions, lengths)]
        if self._ready is None:
            started = time.perf_counter()
            with _told_apart():
                self._ready = self._prepare(inputs)
            self.warm_up_s += time.perf_counter() - started
        return self._ready(*inputs)[: len(ids)]

    def _prepare(self, inputs: Sequence[Tensor]) -> Callable[..., Tensor]:
        capacity = self._size[1]

        def through(*given: Tensor) -> Tensor:
            return self._step(*given, capacity)  # type: ignore[call-arg, arg-type]  # mypy counts no starred tensors

        if _is_on_gpu(inputs[0]):
            return CudaGraphRunner(through, inputs)
        through(*inputs)
        return through


class CudaGraphRunner:
    """What a function does on the GPU, recorded once and replayed for other values in the same memory.

    After https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. torch.compile's own recordings
    (``mode="reduce-overhead"``) belong to the thread that made them, and a run has a thread of its own.

    Parameters
    ----------
    function : callable
        Of tensors, into a tensor; the same again when called again.
    inputs : sequence of Tensor
        With the shapes and on the device of all later ones.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        self._inputs = [given.clone() for given in inputs]
        self._graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs[0].device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    function(*self._inputs)
            torch.cuda.current_stream().wait_stream(aside)
            # other threads of a process may use the GPU meanwhile
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result for `inputs`, in memory of its own."""
        for held, given in zip(self._inputs, inputs, strict=True):
            held.copy_(given)
        self._graph.replay()
        return self._output.clone()


def _is_on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


@contextlib.contextmanager
def _told_apart() -> Iterator[None]:
    """Say what a failed compilation means for the caller; memory that ran out is another matter."""
    try:
        yield
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        if is_out_of_memory(error):
            raise
        cause = getattr(error, "inner_exception", error)
        first = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no reason given")
        raise ConfigError(
            f"torch_compile=True: torch cannot compile the decode step here ({type(cause).__name__}: {first}); install "
            "a C++ compiler such as g++, and triton for CUDA, or leave torch_compile out"
        ) from error
