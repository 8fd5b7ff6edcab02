"""A trial goes in, events come out in the thread that draws: the model works beside the kernel's own thread.

It knows no widgets: `post` hands each event over.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenvl_kit.compare import GridRun, run_grid
from qwenvl_kit.compare.grid import GridCell
from qwenvl_kit.inference.backend import Control

if TYPE_CHECKING:
    from qwenvl_kit.types import Result
    from qwenvl_kit.widgets.state import Trial

Post = Callable[[Callable[[], None]], None]


@dataclass(frozen=True, slots=True)
class Listener:
    """What is told of a run, each in the thread that draws."""

    began: Callable[[GridCell], None]
    token: Callable[[int, str], None]
    answered: Callable[[int, int, Result], None]
    ended: Callable[[GridRun | None, BaseException | None], None]


def here() -> Post:
    """Give the way into the event loop of the calling thread; without one, events are handled where they arise.

    The kernel's loop runs between and during cells, so that other cells answer while a run is at work.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return at_once()

    def post(event: Callable[[], None]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(event)

    return post


def at_once() -> Post:
    """Handle events where they arise, one at a time."""
    lock = threading.Lock()

    def post(event: Callable[[], None]) -> None:
        with lock:
            event()

    return post


def start(trial: Trial, listener: Listener, post: Post) -> tuple[Control, threading.Thread]:
    """Run a trial on a daemon thread.

    Returns
    -------
    Control, Thread
        The first cancels it, between two tokens; the second can be waited for.
    """
    control = make_control(listener, post)
    thread = threading.Thread(target=work, args=(trial, listener, post, control), name="qwenvl_kit-panel", daemon=True)
    thread.start()
    return control, thread


def make_control(listener: Listener, post: Post) -> Control:
    """A control that hands tokens on."""
    return Control(on_token=lambda row, text: post(lambda: listener.token(row, text)))


def work(trial: Trial, listener: Listener, post: Post, control: Control) -> GridRun | None:
    """Run a trial in this thread; None where it could not be run at all."""
    run: GridRun | None = None
    failure: BaseException | None = None
    try:
        run = run_grid(
            [photo.cell for photo in trial.photos],
            None,
            trial.settings,
            repeats=trial.repeats,
            control=control,
            on_start=lambda block: post(lambda: listener.began(block)),
            on_result=lambda setting, repeat, result: post(lambda: listener.answered(setting, repeat, result)),
            warn_ignored=False,
        )
        failure = run.failure
    except Exception as error:  # noqa: BLE001  # the panel says it; a thread's exception would be seen by nobody
        failure = error
    post(lambda: listener.ended(run, failure))
    return run
