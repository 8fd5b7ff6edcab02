"""The backend without a model: it answers with the prompt and the size of what it was shown.

It serves tests, dry runs and measurements of everything around a model; it obeys the seam to the letter.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenvl_kit.checkpoints.capabilities import Capabilities, Device, FixedOption
from qwenvl_kit.checkpoints.resolve import CheckpointDefaults, resolve
from qwenvl_kit.types import PatchGeometry, Result

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.inference.backend import Control, RequestQueue
    from qwenvl_kit.options import Config
    from qwenvl_kit.types import Request

CAPABILITIES = Capabilities(
    fixed=(
        FixedOption(
            option="torch_compile",
            value=False,
            reason="backend='echo' has no model to compile",
            instead="running in eager mode",
        ),
    )
)
_SLOW = re.compile(r"echo-(\d+)ms")


@dataclass(frozen=True, slots=True)
class EchoSpec:
    """The echo model as known before loading.

    Attributes
    ----------
    resolved : ResolvedConfig
        What runs.
    geometry : PatchGeometry
        That of the published checkpoints.
    seconds_per_batch : float
        How long each batch takes, to stand in for a model's time.
    """

    resolved: ResolvedConfig
    geometry: PatchGeometry
    seconds_per_batch: float = 0.0

    @property
    def fingerprint(self) -> str:
        """Always the same: there are no weights."""
        return self.resolved.fingerprint

    @property
    def identity(self) -> str:
        """Equal for all echoes of one speed."""
        return f"echo:{self.seconds_per_batch}"

    def load(self) -> Echo:
        """Make the echo; there is nothing to read."""
        return Echo(self.geometry, self.seconds_per_batch)


@dataclass(frozen=True, slots=True)
class Echo:
    """The echo model, loaded."""

    geometry: PatchGeometry
    seconds_per_batch: float = 0.0

    def generate(self, queue: RequestQueue, resolved: ResolvedConfig, control: Control) -> Iterator[Result]:
        """Answer each request with its own prompt."""
        while (batch := queue.get(resolved.batch_size, block=True)) is not None:
            started = time.perf_counter()
            stopped = bool(self.seconds_per_batch) and control.cancel.wait(self.seconds_per_batch)
            if stopped or control.cancel.is_set():
                yield from (Result(request.row, "cancelled") for request in batch)
                return
            share = (time.perf_counter() - started) / len(batch) if batch else 0.0
            yield from (self._answer(request, control, share) for request in batch)

    def close(self) -> None:
        """Nothing is held."""

    def _answer(self, request: Request, control: Control, seconds: float) -> Result:
        shown = ", ".join(f"{p.size[1]}×{p.size[0]} {p.digest[:8]}" for p in request.images)
        seed = "" if request.seed is None else f" #{request.seed}"
        words = f"{request.prompt} [{shown}]{seed}".split(" ")
        said = words[: request.max_new_tokens]
        if control.on_token is not None:
            for position, word in enumerate(said):
                control.on_token(request.row, word if position == 0 else f" {word}")
        height, width = request.images[0].size
        return Result(
            request.row,
            "ok",
            text=" ".join(said),
            finish_reason="stop" if said == words else "length",
            prompt_tokens=len(request.prompt.split()) + self._visual_tokens(request),
            new_tokens=len(said),
            height=height,
            width=width,
            seconds=seconds,
        )

    def _visual_tokens(self, request: Request) -> int:
        return sum(p.size[0] * p.size[1] for p in request.images) // self.geometry.factor**2


def spec(config: Config) -> EchoSpec:
    """Find the echo model; it is everywhere, and ``model_name="echo-40ms"`` takes its time over each batch."""
    geometry = PatchGeometry()
    named = _SLOW.fullmatch(config.model_name)
    defaults = CheckpointDefaults(named[0] if named else "echo", "echo-1", geometry)
    return EchoSpec(
        resolve(config, Device("cpu"), defaults, CAPABILITIES), geometry, int(named[1]) / 1000 if named else 0.0
    )
