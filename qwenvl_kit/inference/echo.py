"""Backend without a model, for tests, dry runs and measurements: it answers with the prompt and the image sizes."""

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
    from qwenvl_kit.inference.backend import RequestQueue, RunControl
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
        FixedOption(
            option="adapter",
            value=None,
            reason="backend='echo' has no model to adapt",
            instead="running without it",
        ),
        FixedOption(
            option="logprobs",
            value=None,
            reason="backend='echo' generates no tokens",
            instead="answering without log-probabilities",
        ),
        FixedOption(
            option="rows_in_flight",
            value=None,
            reason="backend='echo' generates no tokens",
            instead="answering batch_size rows at once",
        ),
    )
)
_SLOW = re.compile(r"echo-(\d+)ms")


@dataclass(frozen=True, slots=True)
class EchoSpec:
    """Description of the echo backend.

    Attributes
    ----------
    resolved : ResolvedConfig
        The options as they run.
    geometry : PatchGeometry
        That of the published checkpoints.
    seconds_per_batch : float
        Time of each batch, in the place of a model's.
    """

    resolved: ResolvedConfig
    geometry: PatchGeometry
    seconds_per_batch: float = 0.0

    @property
    def fingerprint(self) -> str:
        """A constant, since there are no weights."""
        return self.resolved.fingerprint

    @property
    def identity(self) -> str:
        """Equal for all echoes of one speed."""
        return f"echo:{self.seconds_per_batch}"

    @property
    def checkpoint(self) -> None:
        """None: there is no model."""

    def load(self, control: RunControl | None = None) -> Echo:
        """Return the backend."""
        return Echo(self.geometry, self.seconds_per_batch)


@dataclass(frozen=True, slots=True)
class Echo:
    """The echo backend."""

    geometry: PatchGeometry
    seconds_per_batch: float = 0.0

    def generate(self, queue: RequestQueue, resolved: ResolvedConfig, control: RunControl) -> Iterator[Result]:
        """Yield each request's prompt as its answer."""
        while (batch := queue.get(resolved.batch_size, block=True)) is not None:
            started = time.perf_counter()
            stopped = bool(self.seconds_per_batch) and control.cancel.wait(self.seconds_per_batch)
            if stopped or control.cancel.is_set():
                yield from (Result(request.row, "cancelled") for request in batch)
                return
            share = (time.perf_counter() - started) / len(batch) if batch else 0.0
            yield from (self._answer(request, control, share) for request in batch)

    def close(self) -> None:
        """Do nothing: there is no model to free."""

    def _answer(self, request: Request, control: RunControl, seconds: float) -> Result:
        images = ", ".join(f"{one.size[1]}×{one.size[0]} {one.digest[:8]}" for one in request.images)
        seed = "" if request.seed is None else f" #{request.seed}"
        words = f"{request.prompt} [{images}]{seed}".split(" ")
        output = words[: request.max_new_tokens]
        begun = [request.start_with] if request.start_with else []
        if control.on_token is not None:
            for position, word in enumerate([*begun, *output]):
                control.on_token(request.row, word if position == 0 else f" {word}")
        return Result(
            request.row,
            "ok",
            text=" ".join([*begun, *output]),
            finish_reason="stop" if output == words else "length",
            prompt_tokens=len(request.prompt.split()) + self._visual_tokens(request),
            new_tokens=len(output),
            seconds=seconds,
            **request.sizes,
        )

    def _visual_tokens(self, request: Request) -> int:
        return sum(one.size[0] * one.size[1] for one in request.images) // self.geometry.factor**2


def spec(config: Config) -> EchoSpec:
    """Return the echo backend's spec; ``model_name="echo-40ms"`` makes each batch take 40 ms."""
    geometry = PatchGeometry()
    named = _SLOW.fullmatch(config.model_name)
    defaults = CheckpointDefaults(named[0] if named else "echo", "echo-1", geometry)
    return EchoSpec(
        resolve(config, Device("cpu"), defaults, CAPABILITIES), geometry, int(named[1]) / 1000 if named else 0.0
    )
