"""The seam between the runner and whatever runs a model: three protocols, and the control of a run.

Nothing above it knows what a token is; nothing below it knows what a frame or a URL is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.types import PatchGeometry, Request, Result


class RequestQueue(Protocol):
    """Where a backend takes its requests from."""

    def get(self, n: int, *, block: bool) -> list[Request] | None:
        """Take up to `n` requests.

        Parameters
        ----------
        n : int
            Most requests wanted, at least 1.
        block : bool
            Wait for the first one.

        Returns
        -------
        list of Request or None
            ``[]`` when none is ready yet, None when no more will come.
        """
        ...


@dataclass(frozen=True, slots=True)
class Control:
    """How one run is stopped and watched; a run that was stopped leaves `cancel` set, so make a new one for each.

    Attributes
    ----------
    cancel : threading.Event
        Once set, a backend yields ``cancelled`` for the rows it holds and returns.
    on_token : callable or None
        Called as ``on_token(row, text)`` with each piece of text as it is made, from the backend's thread.
    on_result : callable or None
        Called with each settled `Result`, from a thread of the run.
    note : callable
        Called with a sentence for the record when something ran otherwise than planned; set by the runner.
    """

    cancel: threading.Event = field(default_factory=threading.Event)
    on_token: Callable[[int, str], None] | None = None
    on_result: Callable[[Result], None] | None = None
    note: Callable[[str], None] = field(default=lambda _: None, repr=False)


class Backend(Protocol):
    """A loaded model."""

    def generate(self, queue: RequestQueue, resolved: ResolvedConfig, control: Control) -> Iterator[Result]:
        """Answer what the queue gives as `resolved` says, in any order, each request once.

        A row's fault is a `Result` with status ``error``; an exception ends the whole run.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class BackendSpec(Protocol):
    """What is known of a model before its weights are read; it can be pickled."""

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
        """How the checkpoint cuts pictures into tokens."""
        ...

    @property
    def resolved(self) -> ResolvedConfig:
        """What will really run."""
        ...

    def load(self) -> Backend:
        """Read the weights."""
        ...
