"""A `State` drawn with ipywidgets, and what people do in it told back as moves.

It holds no rules of its own: what may happen is the state's affair, what takes time the worker's.
"""

from __future__ import annotations

import html
import os
import time
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import ipywidgets as widgets
import pandas as pd
from IPython.display import HTML, display

from qwenvl_kit.backends.base import Control
from qwenvl_kit.compare import GridRun, tidy
from qwenvl_kit.compare.grid import Block
from qwenvl_kit.config import Config, Options
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.widgets import worker
from qwenvl_kit.widgets.code import to_code
from qwenvl_kit.widgets.controls import make_controls
from qwenvl_kit.widgets.gallery import MAX_OFFERED, Gallery, Pictures, offered
from qwenvl_kit.widgets.render import PANEL_STYLE, STYLE, notes_html, saved_html, trial_html
from qwenvl_kit.widgets.state import Photo, State

if TYPE_CHECKING:
    import threading

    from qwenvl_kit.records import Result

_REDRAW_S = 0.15
_GONE = "The kernel behind this panel is gone (restarted or shut down): run its cell again. What is shown is kept."


class Panel:
    """What all panels share; see `Playground`.

    Parameters
    ----------
    pictures : DataFrame, Series or sequence, optional
        Pictures to offer; more can be uploaded.
    column : label
        Their column where `pictures` is a DataFrame.
    **options
        Those of `Config`, as the controls stand at first; ``prompt`` among them.
    """

    title = "Playground"
    varied: tuple[str, ...] = ()
    draws_tokens = False

    def __init__(
        self,
        pictures: Pictures = None,
        column: Hashable = "image",
        **options: Unpack[Options],
    ) -> None:
        config = Config(**options)  # what breaks a rule is told here, not at the first click
        asked: dict[str, Any] = {name: value for name, value in options.items() if name != "prompt"}
        photos, left_out = offered(pictures, column)
        self._state = State(prompt=config.prompt or "").add(photos)
        self._control: Control | None = None
        self._thread: threading.Thread | None = None
        self._drawn_at, self._drawn_answers = 0.0, dict[int, int]()
        self._saved: Any = None
        self._n_tokens = 0
        self._axes = self._make_axes(asked)
        self._build(asked)
        if left_out:
            self._state = self._state.say(
                f"The first {MAX_OFFERED} of {MAX_OFFERED + left_out} pictures are offered; df.vl.compare takes all."
            )
        self._draw(whole=True)

    @property
    def state(self) -> State:
        """What the panel shows now."""
        return self._state

    def run(self) -> None:
        """Run as the Run button does, but wait for the end: for cells whose output is to be saved."""
        self._read()
        if self._begin():
            self._control = Control()
            trial = self._state.trial
            assert trial is not None, "a run that has begun has a trial"
            worker.work(trial, self._listener(), lambda event: event(), self._control)

    def start(self) -> None:
        """Run as the Run button does: beside this cell, so that others answer meanwhile."""
        self._read()
        if self._begin():
            trial = self._state.trial
            assert trial is not None, "a run that has begun has a trial"
            self._control, self._thread = worker.start(trial, self._listener(), worker.here())

    def cancel(self) -> None:
        """Stop between two tokens; answers that are there stay."""
        if self._control is not None:
            self._control.cancel.set()
        self._move(self._state.stop())

    def to_config(self) -> Config:
        """The options as the controls stand, those that do not vary.

        Raises
        ------
        ConfigError
            One breaks its rule.
        """
        self._read()
        return self._state.config()

    def to_code(self, *, folder: str | os.PathLike[str] | None = None) -> str:
        """Python that does what Run does, without the panel; it runs as pasted.

        Parameters
        ----------
        folder : path, optional
            Where to write pictures that are in memory; without it they stand in the code.

        Raises
        ------
        ConfigError
            An option breaks its rule, or the pictures are too large to stand in the code.
        """
        self._read(strictly=True)
        self._state.settings()
        return to_code(self._state, folder=folder)

    def to_frame(self) -> pd.DataFrame:
        """The answers so far, tidy, as ``df.vl.compare`` gives them; empty before the first run."""
        trial = self._state.trial
        if trial is None:
            return pd.DataFrame()
        cells = pd.Series([photo.cell for photo in trial.photos], index=[photo.name for photo in trial.photos])
        found = _Gave(trial.results())
        return tidy(found, trial.settings, cells)  # type: ignore[arg-type]

    def to_html(self) -> str:
        """The last run as HTML that needs no kernel, as it is saved in the notebook."""
        return saved_html(self._state, grids=self.draws_tokens)

    # What a panel of its own kind adds.

    def _make_axes(self, options: dict[str, Any]) -> list[widgets.Widget]:
        """Controls for what varies; may take options away."""
        del options
        return []

    def _read_axes(self) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any], int]:
        """What varies, further options, and how often each is asked."""
        return {}, {}, 1

    def _closer(self) -> list[widgets.Widget]:
        """Widgets below the answers."""
        return []

    def _draw_closer(self) -> None:
        """Bring them up to date after a run."""

    # Building and drawing.

    def _build(self, options: dict[str, Any]) -> None:
        self._controls = make_controls(options, hidden=self.varied)
        self._gallery = Gallery(self._state.photos, self._uploaded, self._refused)
        self._prompt = widgets.Textarea(
            value=self._state.prompt, description="Prompt", rows=2, layout={"width": "98%"}, continuous_update=False
        )
        self._run = widgets.Button(description="Run", button_style="primary", tooltip="Ask the model")
        self._cancel = widgets.Button(
            description="Cancel", disabled=True, tooltip="Stop between two tokens; answers are kept"
        )
        self._run.on_click(lambda _: self.start())
        self._cancel.on_click(lambda _: self.cancel())
        self._bar = widgets.FloatProgress(value=0.0, max=1.0, layout={"width": "220px"})
        self._status = widgets.HTML()
        self._answers = widgets.VBox([])
        self._notes = widgets.HTML()
        self._code = widgets.Textarea(description="Code", rows=10, layout={"width": "98%"}, disabled=False)
        more = widgets.Accordion([self._controls.box, self._code], titles=("Parameters", "Code that does the same"))
        more.observe(lambda _: self._show_code(), names="selected_index")
        gone = widgets.HTML(f"<p role='alert'>{_GONE}</p>")
        gone.add_class("qwenvl-gone")
        self._box = widgets.VBox(
            [
                widgets.HTML(f"{PANEL_STYLE}{STYLE}<h3 style='margin: 0'>{self.title}</h3>"),
                gone,
                self._gallery.box,
                self._prompt,
                *self._axes,
                widgets.HBox([self._run, self._cancel, self._bar]),
                self._status,
                more,
                self._answers,
                *self._closer(),
                self._notes,
            ]
        )
        self._box.add_class("qwenvl-panel")

    def _ipython_display_(self) -> None:
        bundle = dict(self._box._repr_mimebundle_())
        bundle["text/plain"] = f"{type(self).__name__}: a panel that needs a running kernel; its results stand below"
        display(bundle, raw=True)
        self._saved = display(HTML(self.to_html()), display_id=True)

    def _read(self, *, strictly: bool = False) -> None:
        """Take over what the controls hold; what cannot be read is said, or raised."""
        try:
            vary, further, repeats = self._read_axes()
        except ConfigError as error:
            if strictly:
                raise
            self._move(self._state.say(str(error), "error"))
            self._unreadable = True
            return
        self._unreadable = False
        options = {**self._controls.read(), **further}
        asked = self._state.choose(self._gallery.chosen()).ask(self._prompt.value, options, vary, repeats)
        self._state = asked

    def _begin(self) -> bool:
        if self._unreadable:
            return False
        was = self._state.trial
        self._n_tokens = 0
        self._move(self._state.start(time.monotonic()), whole=True)
        return self._state.trial is not was

    def _listener(self) -> worker.Listener:
        return worker.Listener(self._on_began, self._on_token, self._on_answer, self._on_ended)

    def _on_began(self, block: Block) -> None:
        self._move(self._state.began(block))

    def _on_token(self, row: int, text: str) -> None:
        del row, text
        self._n_tokens += 1
        self._draw()

    def _on_answer(self, setting: int, repeat: int, result: Result) -> None:
        self._move(self._state.answered(setting, repeat, result, time.monotonic()))

    def _on_ended(self, gave: GridRun | None, failure: BaseException | None) -> None:
        if failure is not None:
            self._state = self._state.fail(f"The run broke: {failure}")
        else:
            notes = [note for record in gave.records.values() for note in record["notes"]] if gave else []
            self._state = self._state.finish(time.monotonic(), notes)
        self._control = self._thread = None
        self._draw(whole=True)
        self._draw_closer()
        if self._saved is not None:
            self._saved.update(HTML(self.to_html()))

    def _move(self, state: State, *, whole: bool = False) -> None:
        changed = state.phase != self._state.phase or state.message != self._state.message
        self._state = state
        self._draw(whole=whole or changed)

    def _draw(self, *, whole: bool = False) -> None:
        """Draw what changed, a few times a second at most, since every picture redrawn travels to the browser."""
        now = time.monotonic()
        if not whole and now - self._drawn_at < _REDRAW_S:
            return
        self._drawn_at = now
        state, idle = self._state, self._state.phase == "idle"
        self._run.disabled, self._cancel.disabled = not idle, state.phase != "running"
        self._controls.lock(not idle)
        self._status.value = self._status_html(now)
        if state.trial is not None:
            self._bar.value = state.trial.n_done / max(1, state.trial.n_wanted)
            self._draw_answers()
            self._notes.value = notes_html(state.trial)

    def _draw_answers(self) -> None:
        trial = self._state.trial
        assert trial is not None, "there are answers of a trial only"
        if len(self._answers.children) != len(trial.photos):
            self._answers.children = tuple(widgets.HTML() for _ in trial.photos)
            self._drawn_answers = {}
        for at, shown in enumerate(self._answers.children):
            n_done = sum(place[2] == at for place in trial.answers) + 1000 * int(trial.started * 1000)
            if self._drawn_answers.get(at) != n_done:
                self._drawn_answers[at] = n_done
                before = self._state.before
                shown.value = STYLE + trial_html(trial, at, before=before, grids=self.draws_tokens)

    def _status_html(self, now: float) -> str:
        state = self._state
        parts = [html.escape(state.message)]
        if state.phase == "running" and state.trial is not None:
            left = state.trial.seconds_left(now)
            parts.append(f"{state.trial.n_done} of {state.trial.n_wanted} answers")
            parts.append(f"{self._n_tokens} tokens")
            parts.append(f"{now - state.trial.started:.0f} s" + (f", about {left:.0f} s left" if left else ""))
        text = " · ".join(part for part in parts if part)
        sign = "⚠ " if state.tone == "error" else ""
        return f"<div class='qwenvl {state.tone}' role='status' aria-live='polite'>{sign}{text}</div>"

    def _show_code(self) -> None:
        try:
            self._code.value = self.to_code()
        except ConfigError as error:
            self._code.value = f"# {error}"

    def _uploaded(self, photos: Sequence[Photo]) -> None:
        self._state = self._state.choose(self._gallery.chosen()).add(photos)
        self._move(self._state.say(f"Added {', '.join(photo.name for photo in photos)}."))

    def _refused(self, why: str) -> None:
        self._move(self._state.say(why, "error"))


class _Gave:
    """What `tidy` asks of a grid's run."""

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = blocks
