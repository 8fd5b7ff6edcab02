"""Time the passes of a loaded model while runs use it: images, prompts and decode steps by rows."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qwenvl_kit.calibration import Calibration
from qwenvl_kit.checkpoints.devices import hardware_label
from qwenvl_kit.inference.backend import Backend, BackendSpec

_FIRST_STEPS = 2  # of each number of rows: they may compile, record or choose kernels

Samples = Mapping[int, list[float]]


class PassTimes:
    """Seconds of passes by their size.

    Attributes
    ----------
    images : mapping of int to list of float
        By patches, of images that were encoded alone; cutting and upload included.
    prompts : mapping of int to list of float
        By tokens, of prompts that were prefilled alone.
    steps : mapping of int to list of float
        By rows.
    """

    def __init__(self) -> None:
        self.images: defaultdict[int, list[float]] = defaultdict(list)
        self.prompts: defaultdict[int, list[float]] = defaultdict(list)
        self.steps: defaultdict[int, list[float]] = defaultdict(list)
        self._cold: tuple[dict[int, list[float]], ...] = ({}, {}, {})
        self._seen: set[Any] = set()

    def end_warm_up(self) -> None:
        """Set aside what was timed so far: first passes of a process, which count only where no others follow."""
        for samples, cold in zip((self.images, self.prompts, self.steps), self._cold, strict=True):
            cold.update(samples)
            samples.clear()

    def last_size(self) -> tuple[int, int]:
        """Return the patches of the last image that was timed, and the tokens of the last prompt."""
        images, prompts = (
            next(reversed(warm or cold), 0)
            for warm, cold in zip((self.images, self.prompts), self._cold[:2], strict=True)
        )
        return images, prompts

    def calibration(self, spec: BackendSpec) -> Calibration | None:
        """Return what `plan` reads; None until there is a sample of each kind."""
        resolved = spec.resolved
        timed = (self.images, self.prompts, self.steps)
        images, prompts, steps = (warm or cold for warm, cold in zip(timed, self._cold, strict=True))
        if not (images and prompts and steps):
            return None
        return Calibration(
            device=hardware_label(resolved.device, resolved.threads),
            fingerprint=spec.fingerprint,
            model=resolved.model,
            backend=resolved.backend,
            dtype=resolved.dtype,
            vision_s=_medians(images),
            prefill_s=_medians(prompts),
            decode_s=_medians({n: some[_FIRST_STEPS:] or some[-1:] for n, some in steps.items()}),
        )

    def _image(self, sequences: list[Any]) -> tuple[Samples, int] | None:
        keys = [key for one in sequences for key in one.image_keys]
        is_new = not self._seen.issuperset(keys)
        self._seen.update(keys)
        return (self.images, int(sequences[0].grid.prod())) if len(keys) == 1 and is_new else None

    def _prompt(self, chunks: list[Any]) -> tuple[Samples, int] | None:
        is_alone = len(chunks) == 1 and not chunks[0].cached_len
        return (self.prompts, len(chunks[0].ids)) if is_alone else None

    def _step(self, ids: Any, *_: Any) -> tuple[Samples, int] | None:
        return self.steps, len(ids)


@contextlib.contextmanager
def timed_passes(backend: Backend) -> Iterator[PassTimes]:
    """Time the passes of a backend within the context; of one without a model in this process, none."""
    times = PassTimes()
    with contextlib.ExitStack() as held:
        runner, encoder_cache = getattr(backend, "model_runner", None), getattr(backend, "encoder_cache", None)
        if runner is not None and encoder_cache is not None:
            clock = _clock(runner)
            held.enter_context(_timed(encoder_cache, "encode", clock, times._image))
            held.enter_context(_timed(runner, "prefill", clock, times._prompt))
            held.enter_context(_timed(runner, "decode", clock, times._step))
        yield times


@contextlib.contextmanager
def _timed(
    owner: Any, name: str, clock: Callable[[], float], size_of: Callable[..., tuple[Samples, int] | None]
) -> Iterator[None]:
    """Time the calls of a method, and keep those of which `size_of` the arguments says where."""
    method = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        started = clock()
        done = method(*arguments, **options)
        seconds, place = clock() - started, size_of(*arguments)
        if place is not None:
            place[0][place[1]].append(seconds)
        return done

    setattr(owner, name, timed)
    try:
        yield
    finally:
        delattr(owner, name)


def _clock(runner: Any) -> Callable[[], float]:
    """Return a clock that waits for the device first."""
    if runner.device.type != "cuda":
        return time.perf_counter
    import torch

    def after_the_gpu() -> float:
        torch.cuda.synchronize(runner.device)
        return time.perf_counter()

    return after_the_gpu


def _medians(samples: Samples) -> dict[int, float]:
    return {size: statistics.median(some) for size, some in sorted(samples.items()) if some}
