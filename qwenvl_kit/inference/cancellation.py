"""Cancellation points: places within long work where a run may end, and where its progress is reported.

A run's thread enters `cancellable`; deep below, layers call `advance` and parts of layers call `check`. Outside of
`cancellable` both do nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import RunControl, Stage

_POLL_S = 0.05
_current: ContextVar[_Watch | None] = ContextVar("qwenvl_kit_run", default=None)


class Cancelled(BaseException):  # like asyncio's, so that no guard around a row's work takes it for a fault of the row
    """The run was cancelled within a pass or while the model was loaded; its rows become ``cancelled``."""


@contextlib.contextmanager
def cancellable(control: RunControl) -> Iterator[None]:
    """Let `check` and `advance` end this thread's work within the context once `control` is cancelled."""
    token = _current.set(_Watch(control))
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def stage(name: Stage, total: int) -> Iterator[None]:
    """Report each `advance` within the context as progress of a stage of `total` steps."""
    watch = _current.get()
    if watch is None:
        yield
        return
    before = watch.stage, watch.done, watch.total
    watch.stage, watch.done, watch.total = name, 0, total
    try:
        yield
    finally:
        watch.stage, watch.done, watch.total = before


def check() -> None:
    """Raise `Cancelled` if the run of this thread is cancelled."""
    watch = _current.get()
    if watch is not None and watch.control.cancel.is_set():
        raise Cancelled


def advance() -> None:
    """Raise `Cancelled` if the run of this thread is cancelled; else report one more step of the stage."""
    bound_advance()()


def bound_advance() -> Callable[[], None]:
    """Return `advance` for other threads that work for the run of this one."""
    watch = _current.get()
    return _nothing if watch is None else watch.advance


@contextlib.contextmanager
def points_before(modules: Iterable[Any], parts: Iterable[Any] = ()) -> Iterator[None]:
    """Call `advance` before each forward of some torch modules, and `check` before those of `parts` of them.

    Outside of `cancellable` they stay as they are.
    """
    if _current.get() is None:
        yield
        return
    hooks = [module.register_forward_pre_hook(lambda *_: advance()) for module in modules]
    hooks += [part.register_forward_pre_hook(lambda *_: check()) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def ended_by(interrupt: Callable[[], None]) -> Iterator[None]:
    """Call `interrupt` if the run of this thread is cancelled within the context, and raise `Cancelled` at its end.

    For long calls into a library. Only in a `stage`: it costs a thread, which would be dear for each token.

    Parameters
    ----------
    interrupt : callable
        Called from another thread; makes the library's call return or raise soon.
    """
    watch = _current.get()
    if watch is None or watch.stage is None:
        yield
        return
    cancel, is_over = watch.control.cancel, threading.Event()

    def wait() -> None:
        while not is_over.wait(_POLL_S):
            if cancel.is_set():
                interrupt()
                return

    thread = threading.Thread(target=wait, name="qwenvl_kit-cancel", daemon=True)
    thread.start()
    try:
        yield
    except Exception:
        check()  # what the library raises for an interrupt is no error
        raise
    finally:
        is_over.set()
        thread.join()
    check()


class _Watch:
    """The run of a thread, and how far its stage is."""

    def __init__(self, control: RunControl) -> None:
        self.control = control
        self.stage: Stage | None = None
        self.done = self.total = 0

    def advance(self) -> None:
        if self.control.cancel.is_set():
            raise Cancelled
        if self.stage is not None:
            self.done += 1
            self.control.report(self.stage, self.done, self.total)


def _nothing() -> None:
    pass
