"""Decode steps recorded as CUDA graphs, and replayed without Python.

A step of the 7B launches about 1,300 kernels, each after 10 µs of Python; on a GPU they take less. After
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. Not yet tried on a GPU.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from qwenvl_kit._warnings import warn
from qwenvl_kit.checkpoints.library_errors import first_line
from qwenvl_kit.errors import QwenVLWarning

if TYPE_CHECKING:
    from torch import Tensor

    Step = Callable[[Tensor, Tensor, Tensor, int], Tensor]

_N_WARM_UPS = 3  # before a graph is recorded, as in torch's notes on graphs
_LENGTH_STEP = 256  # tokens to attend to, by which recordings differ
_MAX_RECORDINGS = 32  # each holds a node for every kernel


class RecordedSteps:
    """Record decode steps as CUDA graphs, one for each number of rows and of tokens to attend to.

    Rows are counted in powers of two, and tokens in steps of 256. The first step of a kind runs as it is, the second is
    recorded. Recordings last until the cache is resized, which moves the memory that they read. They share theirs,
    since a result is copied out before the next replay.

    Parameters
    ----------
    step : callable
        ``step(ids, positions, lengths, max_len)`` returns logits (B, V) of the first B slots, which attend to the first
        `max_len` tokens of their slots. It is idempotent, and waits for nothing.
    reads_whole_slots : bool
        The step reads what each slot holds, whatever `max_len` is.

    Attributes
    ----------
    fault : str or None
        Why steps are no longer recorded, until the cache is emptied.
    warm_up_s : float
        Seconds spent on recording since the last notes.
    """

    def __init__(self, step: Step, *, reads_whole_slots: bool) -> None:
        self._step, self._reads_whole_slots = step, reads_whole_slots
        self._size = (0, 0)
        self._recordings: dict[tuple[int, int], CudaGraphRunner | None] = {}  # None where a step ran once
        self._shared: _Shared | None = None
        self._notes: list[str] = []
        self._has_warned = False
        self.fault: str | None = None
        self.warm_up_s = 0.0

    def take_notes(self) -> list[str]:
        """Return what is to be on record since the last call."""
        notes, seconds = self._notes, self.warm_up_s
        self._notes, self.warm_up_s = [], 0.0
        return notes or ([f"Decode steps were recorded as CUDA graphs in {seconds:.1f} s of this run."] * (seconds > 0))

    def resize_cache(self, n_slots: int, capacity: int) -> int:
        """Discard the recordings if the size of the cache is another, and return how many slots it needs."""
        if self._size != (n_slots, capacity):
            self._discard()
        if not n_slots:
            self.fault = None  # the next run may have more memory
        self._size = (n_slots, capacity)
        return n_slots

    def __call__(self, ids: Tensor, positions: Tensor, lengths: Tensor, max_len: int) -> Tensor:
        """Append a token (B,) to each of the first slots and return logits (B, V)."""
        key = rows, length = self._kind(len(ids), max_len)
        # a free slot gets a token that the next sequence in it overwrites
        inputs = [functional.pad(given, (0, rows - len(ids))) for given in (ids, positions, lengths)]
        recording = self._recordings.get(key)
        if recording is None and key in self._recordings and self.fault is None:
            recording = self._record(key, inputs)
        if recording is not None:
            return recording(*inputs)[: len(ids)]
        if self.fault is not None:
            return self._step(ids, positions, lengths, max_len)
        self._recordings[key] = None
        logits = self._step(*inputs, length)  # type: ignore[call-arg, arg-type]  # mypy counts no starred tensors
        if self._shared is None:
            self._shared = _Shared(logits, self._size[0])
        return logits[: len(ids)]

    def _kind(self, n_rows: int, max_len: int) -> tuple[int, int]:
        """Return the rows and the tokens of the recording for a step."""
        n_slots, capacity = self._size
        length = capacity if self._reads_whole_slots else min(-(-max_len // _LENGTH_STEP) * _LENGTH_STEP, capacity)
        return min(1 << (n_rows - 1).bit_length(), n_slots), length

    def _record(self, key: tuple[int, int], inputs: Sequence[Tensor]) -> CudaGraphRunner | None:
        """Record a step; if that fails, warn once and return None, and steps run as they are from then on."""
        assert self._shared is not None
        started = time.perf_counter()
        step = functools.partial(self._step_into, self._shared.logits[: key[0]], key[1])
        if len(self._recordings) > _MAX_RECORDINGS:  # the oldest: rows only become longer
            del self._recordings[next(kind for kind in self._recordings if kind != key)]
        try:
            self._recordings[key] = CudaGraphRunner(
                step, inputs, n_warm_ups=1, stream=self._shared.stream, pool=self._shared.pool
            )
        except RuntimeError as error:  # also torch.OutOfMemoryError; a device that is lost fails again without a graph
            self._discard()
            self._give_up(f"{type(error).__name__}: {first_line(error)}")
        finally:
            self.warm_up_s += time.perf_counter() - started
        return self._recordings.get(key)

    def _give_up(self, fault: str) -> None:
        self.fault = fault
        note = f"Decode steps cannot be recorded as CUDA graphs ({fault}); running in eager mode."
        if note not in self._notes:
            self._notes.append(note)
        if not self._has_warned:
            self._has_warned = True
            warn(f"{note} Answers are the same.", QwenVLWarning)

    def _step_into(self, logits: Tensor, length: int, *inputs: Tensor) -> Tensor:
        return logits.copy_(self._step(*inputs, length))  # type: ignore[call-arg, arg-type]

    def _discard(self) -> None:
        self._recordings.clear()
        self._shared = None


class CudaGraphRunner:
    """Record what a function does on the GPU, and replay it for other values in the same memory.

    torch.compile's own recordings (``mode="reduce-overhead"``) belong to the thread that made them, and a run has a
    thread of its own.

    Parameters
    ----------
    function : callable
        From tensors to a tensor; idempotent.
    inputs : sequence of Tensor
        Of the shapes and device of all later ones.
    n_warm_ups : int
        How often the function runs before.
    stream : torch.cuda.Stream, optional
        To record on; by default a new one. cuBLAS keeps up to 32 MB for each stream.
    pool : optional
        Memory that recordings share, of ``torch.cuda.graph_pool_handle``.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        *,
        n_warm_ups: int = _N_WARM_UPS,
        stream: Any = None,
        pool: Any = None,
    ) -> None:
        self._inputs = [given.clone() for given in inputs]
        self._graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs[0].device):
            current, aside = torch.cuda.current_stream(), stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                try:
                    for _ in range(n_warm_ups):
                        function(*self._inputs)
                    torch.cuda.synchronize()
                    torch.cuda.empty_cache()  # a recording cannot use what torch keeps for other work
                    self._output = self._capture(function, pool)
                finally:
                    current.wait_stream(aside)  # which may still read the inputs

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the function's result for `inputs`, in memory of its own."""
        for held, given in zip(self._inputs, inputs, strict=True):
            held.copy_(given)
        self._graph.replay()
        return self._output.clone()

    def _capture(self, function: Callable[..., Tensor], pool: Any) -> Tensor:
        """Record on the current stream; other threads may use the GPU meanwhile.

        ``torch.cuda.graph`` does so too, but on a stream of the first GPU that ever recorded: on another GPU its graph
        would be empty. And it gives back pinned memory, which the next upload has to reserve anew.
        """
        self._graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            return function(*self._inputs)
        finally:
            self._graph.capture_end()  # raises what went wrong, if something did


class _Shared:
    """What the recordings of one cache share: a stream, their memory, and the logits of `n_slots` rows."""

    def __init__(self, like: Tensor, n_slots: int) -> None:
        self.logits = like.new_empty(n_slots, like.shape[1])
        with torch.cuda.device(like.device):
            self.stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self.pool: Any = torch.cuda.graph_pool_handle()
