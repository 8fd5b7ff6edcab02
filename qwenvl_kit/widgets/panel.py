"""The behaviour of all panels: start and cancel runs, enter their results, return code, config and frame."""

from __future__ import annotations

import os
import time
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd
from IPython.display import HTML

from qwenvl_kit.compare import GridRun, tidy
from qwenvl_kit.compare.grid import GridCell
from qwenvl_kit.comparison_run import chooser
from qwenvl_kit.errors import ConfigError, Interrupted, printable
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.options import Config, Options
from qwenvl_kit.tasks.classify import Classification
from qwenvl_kit.thumbnails import Thumbnailer
from qwenvl_kit.widgets import worker
from qwenvl_kit.widgets.code import to_code
from qwenvl_kit.widgets.gallery import MAX_OFFERED, Pictures, offered
from qwenvl_kit.widgets.state import PanelImage, State
from qwenvl_kit.widgets.view import View

if TYPE_CHECKING:
    from qwenvl_kit.types import Result
    from qwenvl_kit.widgets.state import Trial

_SHOWN_TAIL = 60
_LONGEST_FAILURE = 1000


class Panel(View):
    """Base of all panels; see `Playground`.

    Parameters
    ----------
    pictures : DataFrame, Series or sequence, optional
        Images to offer; more can be uploaded.
    column : label
        Their column where `pictures` is a DataFrame.
    **options
        Initial options of `Config`, with ``prompt``.
    """

    def __init__(
        self,
        pictures: Pictures = None,
        column: Hashable = "image",
        **options: Unpack[Options],
    ) -> None:
        config = Config(**options)  # raises for invalid options
        asked: dict[str, Any] = {name: value for name, value in options.items() if name != "prompt"}
        images, left_out = offered(pictures, column)
        state = State(prompt=config.prompt or "").add(images)
        if left_out:
            n_all = MAX_OFFERED + left_out
            state = state.with_message(f"Showing the first {MAX_OFFERED} of {n_all} images. Use df.vl.compare for all.")
        self._control: Control | None = None
        self._parts = dict[int, str]()
        super().__init__(state, asked, Thumbnailer.of(config))

    def run(self) -> None:
        """Run as the Run button does, and wait for the end, so that the cell's saved output is complete.

        Raises
        ------
        Interrupted
            Ctrl-C; finished answers are kept.
        """
        trial = self._begin()
        if trial is None:
            return
        post, listener = worker.direct_post(), self._listener()
        self._control = worker.make_control(listener, post)
        run = worker.run_trial(trial, listener, post, self._control)
        if run is not None and run.interrupted:
            raise Interrupted("Interrupted. Finished answers are in .to_frame().", self.to_frame())

    def start(self) -> None:
        """Run as the Run button does, in the background, so that other cells can run."""
        trial = self._begin()
        if trial is not None:
            self._control, _ = worker.start(trial, self._listener(), worker.loop_post())

    def cancel(self) -> None:
        """Stop between two tokens; finished answers are kept."""
        if self._control is not None:
            self._control.cancel.set()
        self._set_state(self._state.stop())

    def to_config(self) -> Config:
        """Return the config of the controls, without varied options.

        Raises
        ------
        ConfigError
            An option is invalid.
        """
        self._read(strictly=True)
        return self._state.config()

    def to_code(self, *, folder: str | os.PathLike[str] | None = None) -> str:
        """Return Python code of the next run; it runs as pasted.

        Parameters
        ----------
        folder : path, optional
            Folder for images in memory; by default the code contains them.

        Raises
        ------
        ConfigError
            An option is invalid, or the images are too large for the code.
        """
        self._read(strictly=True)
        self._state.settings()
        return to_code(self._state, folder=folder)

    def to_frame(self) -> pd.DataFrame:
        """Return the answers so far as the tidy frame of ``df.vl.compare``; empty before the first run."""
        trial = self._state.trial
        if trial is None:
            return pd.DataFrame()
        cells = pd.Series([image.cell for image in trial.images], index=[image.name for image in trial.images])
        choose = chooser(Classification(), [trial.labels] * len(cells)) if trial.labels else None
        return tidy(GridRun(trial.results()), trial.settings, cells, choose=choose)

    def _read(self, *, strictly: bool = False) -> bool:
        """Read the controls into the state; show an invalid value, or raise where `strictly`."""
        try:
            vary, further, repeats = self._read_axes()
        except ConfigError as error:
            if strictly:
                raise
            self._set_state(self._state.with_message(str(error), "error"))
            return False
        options = {**self.controls.read(), **further}
        chosen = self._state.choose(self.gallery.chosen())
        self._state = chosen.ask(self._prompt.value, options, vary, repeats, self._read_labels())
        return True

    def _begin(self) -> Trial | None:
        """Return the trial to run; None where it cannot start, with the reason in the status line."""
        if not self._read():
            return None
        was = self._state.trial
        self._n_tokens, self._last_text = 0, ""
        self._set_state(self._state.start(time.monotonic()), whole=True)
        return self._state.trial if self._state.trial is not was else None

    def _listener(self) -> worker.Listener:
        return worker.Listener(self._on_cell, self._on_token, self._on_result, self._on_end, self._on_tick, self._told)

    def _on_cell(self, cell: GridCell) -> None:
        self._parts = {}
        self._set_state(self._state.start_cell(cell))

    def _on_token(self, row: int, text: str) -> None:
        trial = self._state.trial
        self._n_tokens += 1
        self._parts[row] = self._parts.get(row, "") + text
        if trial is not None and row < len(trial.images):
            self._last_text = f"{trial.images[row].name}: …{self._parts[row][-_SHOWN_TAIL:]}"
        self._draw()

    def _on_result(self, setting: int, repeat: int, result: Result) -> None:
        self._set_state(self._state.add_result(setting, repeat, result, time.monotonic()))

    def _on_end(self, run: GridRun | None, failure: BaseException | None) -> None:
        if failure is not None:
            self._state = self._state.fail(f"The run failed: {printable(str(failure), _LONGEST_FAILURE)}")
        else:
            self._state = self._state.finish(time.monotonic(), run.ignored_options if run else ())
        self._control = None
        self._draw(whole=True)
        self._draw_detail_view()
        for saved in self._saved:
            saved.update(HTML(self.to_html()))

    def _on_tick(self) -> None:
        """Move the clock while no answer comes."""
        if self._state.phase != "idle":
            self._draw()

    def _waits_for(self) -> str:
        other = worker.run_before(self._control)
        return other.told() if other is not None else ""

    def _told(self) -> str:
        trial = self._state.trial
        return f"{self.title}, {trial.n_done} of {trial.n_wanted} answers" if trial is not None else self.title

    def _on_upload(self, images: Sequence[PanelImage], refused: Sequence[str]) -> None:
        self._state = self._state.choose(self.gallery.chosen()).add(images)
        added = [f"Added {', '.join(image.name for image in images)}."] if images else []
        message = " ".join([*added, *(f"{why}." for why in refused)])
        self._set_state(self._state.with_message(message, "error" if refused else "info"))
