"""Run a trial on a thread beside the kernel's; `post` delivers its events to the drawing thread."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenvl_kit.compare import GridRun, run_grid
from qwenvl_kit.compare.grid import GridCell
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.types import Prompt

if TYPE_CHECKING:
    from qwenvl_kit.types import Result
    from qwenvl_kit.widgets.state import Trial

Post = Callable[[Callable[[], None]], None]
TICK_S = 1.0
_running: list[tuple[Control, Listener, threading.Thread]] = []  # in the order of their starts


@dataclass(frozen=True, slots=True)
class Listener:
    """Callbacks of a run, called in the drawing thread; `told` says for other panels which run it is."""

    on_cell: Callable[[GridCell], None]
    on_token: Callable[[int, str], None]
    on_result: Callable[[int, int, Result], None]
    on_end: Callable[[GridRun | None, BaseException | None], None]
    on_tick: Callable[[], None] = lambda: None
    told: Callable[[], str] = lambda: ""


def _asked(prompt: str | None, labels: tuple[str, ...]) -> Prompt | str | None:
    return Prompt(prompt, labels) if prompt and labels else prompt


def loop_post() -> Post:
    """Return a function that posts events to the calling thread's event loop, or `direct_post` without one.

    The kernel's loop runs between and during cells, so that other cells execute during a run.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return direct_post()

    def post(event: Callable[[], None]) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(event)

    return post


def direct_post() -> Post:
    """Return a function that handles events in their own thread, one at a time."""
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
        The control cancels it between two tokens; the thread can be joined.
    """
    control = make_control(listener, post)
    thread = threading.Thread(
        target=run_trial, args=(trial, listener, post, control), name="qwenvl_kit-panel", daemon=True
    )
    _running.append((control, listener, thread))
    thread.start()
    clock = threading.Thread(target=_tick, args=(thread, listener, post), name="qwenvl_kit-clock", daemon=True)
    clock.start()
    return control, thread


def run_before(control: Control | None) -> Listener | None:
    """Return the listener of the run that started before the one of `control` and still lasts; runs take turns."""
    _running[:] = [run for run in _running if run[2].is_alive()]
    earlier = itertools.takewhile(lambda run: run[0] is not control, _running)
    return next((listener for _, listener, _ in earlier), None)


def _tick(thread: threading.Thread, listener: Listener, post: Post) -> None:
    while thread.is_alive():
        thread.join(TICK_S)
        post(listener.on_tick)


def make_control(listener: Listener, post: Post) -> Control:
    """Return a control that posts tokens to the listener."""
    return Control(on_token=lambda row, text: post(lambda: listener.on_token(row, text)))


def run_trial(trial: Trial, listener: Listener, post: Post, control: Control) -> GridRun | None:
    """Run a trial in this thread; return None where it could not start."""
    run: GridRun | None = None
    failure: BaseException | None = None
    try:
        run = run_grid(
            [image.cell for image in trial.images],
            lambda prompt: [_asked(prompt, trial.labels)] * len(trial.images),
            trial.settings,
            repeats=trial.repeats,
            control=control,
            on_start=lambda cell: post(lambda: listener.on_cell(cell)),
            on_result=lambda setting, repeat, result: post(lambda: listener.on_result(setting, repeat, result)),
            warn_ignored=False,
        )
        failure = run.failure
    except Exception as error:  # noqa: BLE001  # shown in the panel; nobody sees a thread's exception
        failure = error
    post(lambda: listener.on_end(run, failure))
    return run
