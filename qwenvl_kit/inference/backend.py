"""Protocols between a run and the backend that answers it.

Above them there are no tokens; below them there are no data frames and no URLs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.checkpoint import Checkpoint
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.types import PatchGeometry, Request, Result


Stage = Literal["load", "encode", "prefill"]


class RequestQueue(Protocol):
    """Source of a backend's requests."""

    def get(self, n: int, *, block: bool) -> list[Request] | None:
        """Remove and return up to `n` requests.

        Parameters
        ----------
        n : int
            At least 1.
        block : bool
            Wait for the first one.

        Returns
        -------
        list of Request or None
            ``[]`` if none is ready yet, None if no more will come.
        """
        ...


@dataclass(frozen=True, slots=True)
class Control:
    """Cancel and watch one run. A cancelled run leaves `cancel` set, so each run needs a new control.

    Attributes
    ----------
    cancel : threading.Event
        Set it to end the run: rows without a result become ``cancelled``.
    on_token : callable or None
        Called as ``on_token(row, text)`` with each new piece of text, from the backend's thread.
    on_result : callable or None
        Called with the `Result` of each row, from a thread of the run.
    """

    cancel: threading.Event = field(default_factory=threading.Event)
    on_token: Callable[[int, str], None] | None = None
    on_result: Callable[[Result], None] | None = None


@dataclass(frozen=True, slots=True)
class RunControl:
    """The part of a run's `Control` that a backend gets, and the receiver of its notes.

    Attributes
    ----------
    cancel, on_token
        See `Control`.
    note : callable
        Called with a sentence for the run's record when something ran otherwise than planned.
    report : callable
        Called as ``report(stage, done, total)`` within long work. ``load`` counts tensors that are read, or layers that
        are packed; ``encode`` blocks of the vision tower in one pass; ``prefill`` layers of the language model in all
        passes of some prompts. ONNX Runtime's passes count as one each.
    begin : callable
        Called as ``begin(rows)`` before the images and prompts of some rows are read.
    """

    cancel: threading.Event = field(default_factory=threading.Event)
    on_token: Callable[[int, str], None] | None = None
    note: Callable[[str], None] = field(default=lambda _: None, repr=False)
    report: Callable[[Stage, int, int], None] = field(default=lambda *_: None, repr=False)
    begin: Callable[[Sequence[int]], None] = field(default=lambda _: None, repr=False)


class Backend(Protocol):
    """A loaded model."""

    def generate(self, queue: RequestQueue, resolved: ResolvedConfig, control: RunControl) -> Iterator[Result]:
        """Yield one result for each request of the queue, in any order.

        An error of one row is a `Result` with status ``error``; an exception ends the whole run. Once
        ``control.cancel`` is set, yield ``cancelled`` for the requests taken so far and return.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class BackendSpec(Protocol):
    """Description of a model, made without reading its weights; it can be pickled."""

    @property
    def fingerprint(self) -> str:
        """Digest of the weights and of what changes their numbers: dtype, attention, quantisation."""
        ...

    @property
    def identity(self) -> str:
        """Equal for configs that can share one loaded model."""
        ...

    @property
    def geometry(self) -> PatchGeometry:
        """Patch size and pixel limits of the checkpoint."""
        ...

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The configs of the model; None where there is no model."""
        ...

    @property
    def resolved(self) -> ResolvedConfig:
        """The options as they will run."""
        ...

    def load(self, control: RunControl | None = None) -> Backend:
        """Read the weights and return the backend.

        Raises
        ------
        Cancelled
            `control` was cancelled meanwhile.
        """
        ...
