"""Fault injection: a backend and pictures that fail, dawdle and answer out of order as a script says."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from qwenvl_kit.checkpoints.capabilities import Device
from qwenvl_kit.checkpoints.resolve import CheckpointDefaults, ResolvedConfig, resolve
from qwenvl_kit.errors import RowError
from qwenvl_kit.inference.backend import Backend, RequestQueue, RunControl
from qwenvl_kit.options import Config
from qwenvl_kit.types import PatchGeometry, Request, Result

_T = TypeVar("_T")


@dataclass
class Script:
    """What a `ScriptedBackend` does wrong, and what it saw.

    Attributes
    ----------
    seed : int
        Of the order of answers and of the delays.
    failing : set of int
        Gray levels of pictures whose rows it answers with an error.
    raises_after : int or None
        Requests after which it breaks.
    returns_after : int or None
        Requests after which it returns as if done.
    answers_twice, forgets : bool
        It answers its first row twice; it never answers it.
    delay_s : float
        Longest pause before an answer.
    """

    seed: int = 0
    failing: frozenset[int] = frozenset()
    raises_after: int | None = None
    returns_after: int | None = None
    answers_twice: bool = False
    forgets: bool = False
    delay_s: float = 0.0
    seen: list[Request] = field(default_factory=list)
    n_loads: int = 0
    largest_wait: int = 0


@dataclass(frozen=True)
class ScriptedSpec:
    """A spec whose backend follows a script."""

    config: Config
    script: Script

    @property
    def geometry(self) -> PatchGeometry:
        return PatchGeometry()

    @property
    def resolved(self) -> ResolvedConfig:
        return resolve(self.config, Device("cpu"), CheckpointDefaults("scripted", "scripted-1", PatchGeometry()))

    @property
    def fingerprint(self) -> str:
        return "scripted-1"

    @property
    def identity(self) -> str:
        return f"scripted:{id(self.script)}"

    @property
    def checkpoint(self) -> None:
        """None: there is no model."""

    def load(self, control: RunControl | None = None) -> Backend:
        self.script.n_loads += 1
        return ScriptedBackend(self.script)

    @contextlib.contextmanager
    def acquire(self, control: RunControl | None = None) -> Iterator[Backend]:
        yield self.load(control)


class ScriptedBackend:
    """Takes batches of random sizes, answers in random order, and fails where the script says so."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._random = random.Random(script.seed)

    def generate(self, queue: RequestQueue, resolved: ResolvedConfig, control: RunControl) -> Iterator[Result]:
        script, held = self._script, list[Request]()
        while (taken := queue.get(self._random.randint(1, 5), block=not held)) is not None or held:
            held += taken or []
            script.seen += taken or []
            if control.cancel.is_set():
                yield from (Result(request.row, "cancelled") for request in held)
                return
            if script.raises_after is not None and len(script.seen) > script.raises_after:
                raise RuntimeError("the scripted backend broke")
            if script.returns_after is not None and len(script.seen) > script.returns_after:
                return
            self._random.shuffle(held)
            for _ in range(self._random.randint(0 if taken is not None else 1, len(held))):
                yield from self._answer(held.pop())

    def close(self) -> None:
        pass

    def _answer(self, request: Request) -> Iterator[Result]:
        time.sleep(self._random.random() * self._script.delay_s)
        level = int(request.images[0].pixels[0, 0, 0])
        if level in self._script.failing:
            yield Result.failed(request.row, RowError("generate", f"level {level} fails"))
            return
        if self._script.forgets and request is self._script.seen[0]:
            return
        answer = Result(request.row, "ok", text=expected(level, request.prompt, request.seed))
        yield answer
        if self._script.answers_twice:
            yield answer


def expected(level: int, prompt: str, seed: int | None = None) -> str:
    """What the scripted backend says of a picture of one gray level."""
    return f"{prompt} {level} {seed}"


def gray(level: int) -> np.ndarray:
    """A picture of one gray level, which names it."""
    return np.full((56, 56, 3), level, dtype=np.uint8)


def within(seconds: float, work: Callable[[], _T]) -> _T:
    """Do `work` in a thread and fail, instead of hanging, when it takes longer."""
    done: list[_T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001  # handed to the test's own thread
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"still at work after {seconds} s"
    if failed:
        raise failed[0]
    return done[0]
