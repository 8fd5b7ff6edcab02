"""What all panels do: start and cancel runs, take answers in, give code, config and frame out.

It draws nothing itself: that is `View`'s affair; what may happen is the state's, what takes time the worker's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd
from IPython.display import HTML

from qwenvl_kit.compare import GridRun, tidy
from qwenvl_kit.compare.grid import GridCell
from qwenvl_kit.errors import ConfigError, Interrupted, printable
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.options import Config, Options
from qwenvl_kit.thumbnails import Thumbnailer
from qwenvl_kit.widgets import worker
from qwenvl_kit.widgets.code import to_code
from qwenvl_kit.widgets.gallery import MAX_OFFERED, Pictures, offered
from qwenvl_kit.widgets.state import Photo, State
from qwenvl_kit.widgets.view import View

if TYPE_CHECKING:
    from qwenvl_kit.types import Result
    from qwenvl_kit.widgets.state import Trial

_SHOWN_TAIL = 60
_LONGEST_FAILURE = 1000


class Panel(View):
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

    def __init__(
        self,
        pictures: Pictures = None,
        column: Hashable = "image",
        **options: Unpack[Options],
    ) -> None:
        config = Config(**options)  # what breaks a rule is told here, not at the first click
        asked: dict[str, Any] = {name: value for name, value in options.items() if name != "prompt"}
        photos, left_out = offered(pictures, column)
        state = State(prompt=config.prompt or "").add(photos)
        if left_out:
            n_all = MAX_OFFERED + left_out
            state = state.with_message(
                f"The first {MAX_OFFERED} of {n_all} pictures are offered; df.vl.compare takes all."
            )
        self._control: Control | None = None
        self._parts = dict[int, str]()
        super().__init__(state, asked, Thumbnailer.of(config))

    def run(self) -> None:
        """Run as the Run button does, but wait for the end: for cells whose output is to be saved.

        Raises
        ------
        Interrupted
            Ctrl-C; answers that came are kept.
        """
        trial = self._begin()
        if trial is None:
            return
        post, listener = worker.at_once(), self._listener()
        self._control = worker.make_control(listener, post)
        run = worker.work(trial, listener, post, self._control)
        if run is not None and run.interrupted:
            raise Interrupted("the panel's run was interrupted; what is done is in .to_frame()", self.to_frame())

    def start(self) -> None:
        """Run as the Run button does: beside this cell, so that others answer meanwhile."""
        trial = self._begin()
        if trial is not None:
            self._control, _ = worker.start(trial, self._listener(), worker.here())

    def cancel(self) -> None:
        """Stop between two tokens; answers that are there stay."""
        if self._control is not None:
            self._control.cancel.set()
        self._set_state(self._state.stop())

    def to_config(self) -> Config:
        """The options as the controls stand, those that do not vary.

        Raises
        ------
        ConfigError
            One breaks its rule.
        """
        self._read(strictly=True)
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
        return tidy(GridRun(trial.results()), trial.settings, cells)

    def _read(self, *, strictly: bool = False) -> bool:
        """Take over what the controls hold; what cannot be read is said, or raised."""
        try:
            vary, further, repeats = self._read_axes()
        except ConfigError as error:
            if strictly:
                raise
            self._set_state(self._state.with_message(str(error), "error"))
            return False
        options = {**self._controls.read(), **further}
        asked = self._state.choose(self._gallery.chosen()).ask(self._prompt.value, options, vary, repeats)
        self._state = asked
        return True

    def _begin(self) -> Trial | None:
        """The trial that may run now; None, and a sentence in the panel, where none may."""
        if not self._read():
            return None
        was = self._state.trial
        self._n_tokens, self._last_text = 0, ""
        self._set_state(self._state.start(time.monotonic()), whole=True)
        return self._state.trial if self._state.trial is not was else None

    def _listener(self) -> worker.Listener:
        return worker.Listener(self._on_began, self._on_token, self._on_answer, self._on_ended)

    def _on_began(self, block: GridCell) -> None:
        self._parts = {}
        self._set_state(self._state.began(block))

    def _on_token(self, row: int, text: str) -> None:
        trial = self._state.trial
        self._n_tokens += 1
        self._parts[row] = self._parts.get(row, "") + text
        if trial is not None and row < len(trial.photos):
            self._last_text = f"{trial.photos[row].name}: …{self._parts[row][-_SHOWN_TAIL:]}"
        self._draw()

    def _on_answer(self, setting: int, repeat: int, result: Result) -> None:
        self._set_state(self._state.answered(setting, repeat, result, time.monotonic()))

    def _on_ended(self, run: GridRun | None, failure: BaseException | None) -> None:
        if failure is not None:
            self._state = self._state.fail(f"The run broke: {printable(str(failure), _LONGEST_FAILURE)}")
        else:
            self._state = self._state.finish(time.monotonic(), run.ignored_options if run else ())
        self._control = None
        self._draw(whole=True)
        self._draw_detail_view()
        if self._saved is not None:
            self._saved.update(HTML(self.to_html()))

    def _uploaded(self, photos: Sequence[Photo]) -> None:
        self._state = self._state.choose(self._gallery.chosen()).add(photos)
        self._set_state(self._state.with_message(f"Added {', '.join(photo.name for photo in photos)}."))

    def _refused(self, why: str) -> None:
        self._set_state(self._state.with_message(why, "error"))
