"""Draw a `State` with ipywidgets, and forward events to the methods of a `Panel`."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
from IPython.display import HTML, display

from qwenvl_kit.errors import ConfigError, RowError
from qwenvl_kit.thumbnails import Thumbnailer
from qwenvl_kit.widgets.controls import make_controls
from qwenvl_kit.widgets.elements import Disclosure, StatusLine
from qwenvl_kit.widgets.gallery import Gallery
from qwenvl_kit.widgets.render import PANEL_STYLE, STYLE, notes_html, saved_html, trial_html
from qwenvl_kit.widgets.replaced import cancel_replaced
from qwenvl_kit.widgets.state import PanelImage, State

_GONE = "The kernel of this panel has ended. Run its cell again. The answers shown are kept."


class View(ABC):
    """The widgets of a panel.

    Parameters
    ----------
    state : State
        Initial state.
    options : mapping
        Initial values of the controls.
    thumbnailer : Thumbnailer
        Reads images under the panel's limits.

    Attributes
    ----------
    run_button, cancel_button, status_line, answers, notes : Widget
    controls : Controls
    gallery : Gallery
    redraw_s : float
        Minimum time between drawings, in seconds.
    """

    title = "Playground"
    varied: tuple[str, ...] = ()
    draws_tokens = False
    redraw_s = 0.15

    def __init__(self, state: State, options: dict[str, Any], thumbnailer: Thumbnailer) -> None:
        self._state, self._thumbnailer = state, thumbnailer
        self._drawn_at, self._drawn_answers = 0.0, dict[int, tuple[float, int]]()
        self._saved: list[Any] = []  # one for each place that shows the panel
        self._n_tokens, self._last_text = 0, ""
        self._axes = self._make_axes(options)
        self._build(options)
        self._draw(whole=True)

    @property
    def state(self) -> State:
        """The state shown."""
        return self._state

    @abstractmethod
    def start(self) -> None:
        """Handle the Run button."""

    @abstractmethod
    def cancel(self) -> None:
        """Handle the Cancel button."""

    @abstractmethod
    def to_code(self) -> str:
        """Return Python code of the next run."""

    @abstractmethod
    def _on_upload(self, images: Sequence[PanelImage], refused: Sequence[str]) -> None:
        """Handle uploaded images, and sentences about files that were not added."""

    @abstractmethod
    def _waits_for(self) -> str:
        """Return which run this one waits for; empty where it does not."""

    def to_html(self) -> str:
        """Return the last run as HTML without a kernel, as saved in the notebook."""
        return saved_html(self._state, grids=self.draws_tokens)

    # Hooks of the panels.

    def _make_axes(self, options: dict[str, Any]) -> list[widgets.Widget]:
        """Return the controls of the varied options; remove these from `options`."""
        del options
        return []

    def _read_axes(self) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any], int]:
        """Return varied options, further options, and repeats."""
        return {}, {}, 1

    def _read_labels(self) -> tuple[str, ...]:
        """Return the answers to choose from; none for free answers."""
        return ()

    def _detail_view(self) -> list[widgets.Widget]:
        """Return the widgets below the answers."""
        return []

    def _draw_detail_view(self) -> None:  # noqa: B027  # most panels have nothing there
        """Update them after a run."""

    # Building and drawing.

    def _build(self, options: dict[str, Any]) -> None:
        self.controls = make_controls(options, hidden=self.varied)
        self.gallery = Gallery(self._state.images, self._thumbnailer, self._on_upload)
        self._prompt = widgets.Textarea(
            value=self._state.prompt,
            description="Prompt",
            tooltip="What each image is asked",
            rows=2,
            layout={"width": "98%"},
            continuous_update=False,
        )
        if "prompt" in self.varied:
            self._prompt.layout.display = "none"
        self.run_button = widgets.Button(description="Run", button_style="primary", tooltip="Run the model")
        self.cancel_button = widgets.Button(
            description="Cancel", disabled=True, tooltip="Stop between two tokens; answers are kept"
        )
        self.run_button.on_click(lambda _: self.start())
        self.cancel_button.on_click(lambda _: self.cancel())
        self._bar = widgets.FloatProgress(value=0.0, max=1.0, layout={"width": "220px"})
        self.status_line = StatusLine()
        self.answers = widgets.VBox([])
        self.notes = widgets.HTML()
        self.code = widgets.Textarea(description="Code", rows=10, layout={"width": "98%"}, disabled=False)
        run_row = widgets.HBox([self.run_button, self.cancel_button, self._bar])
        run_row.add_class("qwenvl-run")
        self.parameters_header = Disclosure(label="Parameters")
        self.code_header = Disclosure(label="Code that does the same")
        self.code_header.observe(lambda _: self._show_code(), names="opened")
        gone = widgets.HTML(f"<p role='alert'>{_GONE}</p>")
        gone.add_class("qwenvl-gone")
        self._box = widgets.VBox(
            [
                widgets.HTML(f"{PANEL_STYLE}{STYLE}<h3 style='margin: 0'>{self.title}</h3>"),
                gone,
                self.gallery.box,
                self._prompt,
                *self._axes,
                run_row,
                self.status_line,
                *_section(self.parameters_header, self.controls.box),
                *_section(self.code_header, self.code),
                self.answers,
                *self._detail_view(),
                self.notes,
            ]
        )
        self._box.add_class("qwenvl-panel")

    def _ipython_display_(self) -> None:
        bundle = dict(self._box._repr_mimebundle_())
        bundle["text/plain"] = f"{type(self).__name__}: a panel that needs a running kernel; its results are below"
        display(bundle, raw=True)
        self._saved.append(display(HTML(self.to_html()), display_id=True))
        cancel_replaced(self)

    def _set_state(self, state: State, *, whole: bool = False) -> None:
        changed = state.phase != self._state.phase or state.message != self._state.message
        self._state = state
        self._draw(whole=whole or changed)

    def _draw(self, *, whole: bool = False) -> None:
        """Draw changes, a few times a second at most, since each redrawn image is sent to the browser."""
        now = time.monotonic()
        if not whole and now - self._drawn_at < self.redraw_s:
            return
        self._drawn_at = now
        state, idle = self._state, self._state.phase == "idle"
        self.run_button.disabled, self.cancel_button.disabled = not idle, state.phase != "running"
        self.controls.lock(not idle)
        self.status_line.value, self.status_line.tone = self._status(now), state.tone
        if whole:
            self.status_line.announcement = state.message
        if state.trial is None:
            self._bar.value, self.answers.children, self._drawn_answers = 0.0, (), {}
        else:
            self._bar.value = state.trial.n_done / max(1, state.trial.n_wanted)
            self._draw_answers()
            self.notes.value = str(notes_html(state.trial))

    def _draw_answers(self) -> None:
        trial = self._state.trial
        assert trial is not None, "answers belong to a trial"
        if len(self.answers.children) != len(trial.images):
            self.answers.children = tuple(widgets.HTML() for _ in trial.images)
            self._drawn_answers = {}
        for at, shown in enumerate(self.answers.children):
            drawn = (trial.started, sum(place[2] == at for place in trial.answers))
            if self._drawn_answers.get(at) != drawn:
                self._drawn_answers[at] = drawn
                before = self._state.before
                shown.value = f"{STYLE}{trial_html(trial, at, before=before, grids=self.draws_tokens)}"

    def _status(self, now: float) -> str:
        state = self._state
        parts = [state.message]
        if state.phase == "running" and state.trial is not None:
            if not self._n_tokens and not state.trial.n_done and (other := self._waits_for()):
                parts = [f"Waiting for another run: {other}"]
            left = state.trial.seconds_left(now)
            parts.append(f"{state.trial.n_done} of {state.trial.n_wanted} answers")
            parts.append(f"{self._n_tokens} token{'' if self._n_tokens == 1 else 's'}")
            parts.append(f"{now - state.trial.started:.0f} s" + (f", about {left:.0f} s left" if left else ""))
            parts.append(self._last_text)
        return " · ".join(part for part in parts if part)

    def _show_code(self) -> None:
        try:
            self.code.value = self.to_code()
        except (ConfigError, RowError) as error:
            self.code.value = "\n".join(f"# {line}" for line in f"{error}".splitlines())


def _section(header: Disclosure, content: widgets.Widget) -> list[widgets.Widget]:
    """Return a header and the section that it opens."""

    def show(_: object = None) -> None:
        content.layout.display = None if header.opened else "none"

    header.observe(show, names="opened")
    show()
    return [header, content]
