"""The state of a panel as a frozen value, and its transitions. It imports neither widgets nor models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from qwenvl_kit.compare import Setting, expand
from qwenvl_kit.compare.grid import GridCell
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.options import Config
from qwenvl_kit.tasks.classify import check_classifiable, row_labels

if TYPE_CHECKING:
    from qwenvl_kit.types import Result

Phase = Literal["idle", "running", "stopping"]
Tone = Literal["info", "error"]
Place = tuple[int, int, int]  # setting, repeat, image


@dataclass(frozen=True, slots=True, eq=False)
class PanelImage:
    """An image of the panel: display name and cell.

    `memo` caches its drawings, so that a large image is decoded once, not once per answer.
    """

    name: str
    cell: Any
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the panel, with its answers so far.

    Attributes
    ----------
    images : tuple of PanelImage
        The images chosen at its start.
    settings : tuple of Setting
        The grid; a single setting where nothing varies.
    repeats : int
        Runs of each setting.
    prompt : str
        The prompt of all rows.
    labels : tuple of str
        Answers to choose from; none for free answers.
    started : float
        Start time, on the clock of the view, in seconds.
    grid_cells : mapping
        From (setting, repeat) to the started cell, without results.
    answers : mapping
        From (setting, repeat, image) to its result.
    notes : tuple of str
        Ignored options, with their reasons.
    """

    images: tuple[PanelImage, ...]
    settings: tuple[Setting, ...]
    repeats: int
    prompt: str
    started: float
    labels: tuple[str, ...] = ()
    first_answer: float | None = None
    grid_cells: Mapping[tuple[int, int], GridCell] = field(default_factory=lambda: MappingProxyType({}))
    answers: Mapping[Place, Result] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()

    @property
    def n_wanted(self) -> int:
        """Number of results of the whole grid."""
        return len(self.images) * len(self.settings) * self.repeats

    @property
    def n_done(self) -> int:
        """Number of finished results."""
        return sum(result.status != "cancelled" for result in self.answers.values())

    def seconds_left(self, now: float) -> float | None:
        """Return the estimate from the rate since the first result; None before the second."""
        if self.first_answer is None or self.n_done < 2 or now <= self.first_answer:
            return None
        return (now - self.first_answer) / (self.n_done - 1) * (self.n_wanted - self.n_done)

    def results(self) -> list[GridCell]:
        """Return the started cells with their results so far."""
        return [
            replace(
                cell,
                results=[r for (s, k, _), r in sorted(self.answers.items(), key=lambda a: a[0]) if (s, k) == place],
            )
            for place, cell in self.grid_cells.items()
        ]


@dataclass(frozen=True, slots=True)
class State:
    """A panel, idle or running.

    Attributes
    ----------
    images : tuple of PanelImage
        All images of the panel.
    chosen : frozenset of int
        Positions of the images of the next run.
    prompt : str
        The prompt of the next run.
    labels : tuple of str
        Answers to choose from in the next run; none for free answers.
    options : mapping
        The fixed options of the next run.
    vary : mapping
        Varied options and their values.
    repeats : int
        Runs of each setting.
    phase : {"idle", "running", "stopping"}
    message, tone : str
        The status line, and whether it is an error.
    trial, before : Trial or None
        The last run, and the one before it.

    Examples
    --------
    >>> state = State(images=(PanelImage("a", b"..."),), prompt="What is it?").choose([0])
    >>> state.start(now=0.0).phase
    'running'
    """

    images: tuple[PanelImage, ...] = ()
    chosen: frozenset[int] = frozenset()
    prompt: str = ""
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    vary: Mapping[str, Sequence[Any]] = field(default_factory=lambda: MappingProxyType({}))
    repeats: int = 1
    labels: tuple[str, ...] = ()
    phase: Phase = "idle"
    message: str = ""
    tone: Tone = "info"
    trial: Trial | None = None
    before: Trial | None = None

    def with_message(self, message: str, tone: Tone = "info") -> State:
        """Return the state with another status line."""
        return replace(self, message=message, tone=tone)

    def add(self, images: Sequence[PanelImage]) -> State:
        """Return the state with more images, all of them chosen."""
        new = range(len(self.images), len(self.images) + len(images))
        return replace(self, images=(*self.images, *images), chosen=self.chosen | set(new))

    def choose(self, positions: Sequence[int]) -> State:
        """Return the state with these images chosen for the next run."""
        return replace(self, chosen=frozenset(at for at in positions if 0 <= at < len(self.images)))

    def ask(
        self,
        prompt: str,
        options: Mapping[str, Any],
        vary: Mapping[str, Sequence[Any]],
        repeats: int = 1,
        labels: Sequence[str] = (),
    ) -> State:
        """Return the state with these inputs of the next run."""
        return replace(
            self,
            prompt=prompt,
            options=MappingProxyType(dict(options)),
            vary=MappingProxyType(dict(vary)),
            repeats=repeats,
            labels=tuple(labels),
        )

    @property
    def asked(self) -> dict[str, Any]:
        """The fixed options, with the prompt unless it varies."""
        return {**self.options} if "prompt" in self.vary else {**self.options, "prompt": self.prompt}

    def config(self) -> Config:
        """Return the config of the fixed options.

        Raises
        ------
        ConfigError
            An option is invalid.
        """
        return Config(**self.asked)

    def settings(self) -> tuple[Setting, ...]:
        """Return the grid of the next run.

        Raises
        ------
        ConfigError
            An option is invalid, or the labels are.
        """
        settings = self._settings()
        if self.labels:
            row_labels(self.labels, 1)
            for setting in settings:
                check_classifiable(setting.config)
        return settings

    def _settings(self) -> tuple[Setting, ...]:
        if not self.vary:
            return (Setting((), self.config(), 0),)
        return tuple(expand(self.vary, self.asked))  # type: ignore[arg-type]  # Config checks them

    def start(self, now: float) -> State:
        """Start a run, or report why it cannot start."""
        if self.phase != "idle":
            return self.with_message("A run is in progress. Wait for its end, or press Cancel.", "error")
        if not self.chosen:
            return self.with_message("No image is chosen. Tick one above, or upload one.", "error")
        if "prompt" not in self.vary and not self.prompt.strip():
            return self.with_message("The prompt is empty. Enter a prompt.", "error")
        try:
            settings = self.settings()
        except ConfigError as error:
            return self.with_message(f"{error}", "error")
        images = tuple(self.images[at] for at in sorted(self.chosen))
        trial = Trial(images, settings, self.repeats, self.prompt, now, self.labels)
        kept = self.trial if self.trial is not None and self.trial.n_done else self.before
        return replace(self, phase="running", trial=trial, before=kept).with_message("Loading the model…")

    def start_cell(self, cell: GridCell) -> State:
        """Enter a cell that starts."""
        if self.trial is None:
            return self
        grid_cells = MappingProxyType({**self.trial.grid_cells, (cell.setting, cell.repeat): cell})
        label = self.trial.settings[cell.setting].label
        trial = replace(self.trial, grid_cells=grid_cells)
        return replace(self, trial=trial).with_message(f"Running{f' with {label}' if label else ''}…")

    def add_result(self, setting: int, repeat: int, result: Result, now: float) -> State:
        """Enter a result."""
        if self.trial is None:
            return self
        answers = MappingProxyType({**self.trial.answers, (setting, repeat, result.row): result})
        first = self.trial.first_answer if self.trial.first_answer is not None else now
        return replace(self, trial=replace(self.trial, answers=answers, first_answer=first))

    def stop(self) -> State:
        """Request the end of the run."""
        return replace(self, phase="stopping").with_message("Stopping…") if self.phase == "running" else self

    def finish(self, now: float, notes: Sequence[str] = ()) -> State:
        """Enter the end of the run, complete or cancelled."""
        if self.trial is None:
            return replace(self, phase="idle")
        trial = replace(self.trial, notes=tuple(dict.fromkeys(notes)))
        done, wanted = trial.n_done, trial.n_wanted
        failed = sum(result.status == "error" for result in trial.answers.values())
        summary = f"{done} of {wanted} answers in {now - trial.started:.1f} s"
        state = replace(self, phase="idle", trial=trial)
        if done < wanted:
            return state.with_message(f"Stopped after {summary}. Finished answers are kept.")
        if failed:
            return state.with_message(f"Done: {summary}; {failed} failed, see their errors.", "error")
        return state.with_message(f"Done: {summary}.")

    def fail(self, message: str) -> State:
        """Enter the failure of the run; its answers are kept, or those of the run before where it has none."""
        state = replace(self, phase="idle").with_message(message, "error")
        has_answers = self.trial is not None and self.trial.n_done
        return state if has_answers else replace(state, trial=self.before, before=None)
