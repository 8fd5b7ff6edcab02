"""What a panel shows, as a frozen value, and the moves that lead from one to the next.

It knows no widgets, threads or models: a view draws it, a worker feeds it, both are told apart here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from qwenvl_kit.compare import Setting, expand
from qwenvl_kit.compare.grid import GridCell
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.options import Config

if TYPE_CHECKING:
    from qwenvl_kit.types import Result

Phase = Literal["idle", "running", "stopping"]
Tone = Literal["info", "error"]
Place = tuple[int, int, int]  # setting, repeat, picture


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """A picture that the panel offers: its name for people, and the cell that it is.

    `memo` keeps what was drawn of it: a large picture must not be decoded anew for every answer that comes.
    """

    name: str
    cell: Any
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the panel: what was asked, and the answers so far.

    Attributes
    ----------
    photos : tuple of Photo
        As they were chosen when it began.
    settings : tuple of Setting
        The grid; one for a panel where nothing varies.
    repeats : int
        How often each is asked.
    prompt : str
        What was asked.
    started : float
        When, on the clock that the view passes to every move.
    blocks : mapping
        From (setting, repeat) to what is known of it before its answers.
    answers : mapping
        From (setting, repeat, picture) to its result.
    notes : tuple of str
        Options that did not take effect, and why.
    """

    photos: tuple[Photo, ...]
    settings: tuple[Setting, ...]
    repeats: int
    prompt: str
    started: float
    first_answer: float | None = None
    grid_cells: Mapping[tuple[int, int], GridCell] = field(default_factory=lambda: MappingProxyType({}))
    answers: Mapping[Place, Result] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()

    @property
    def n_wanted(self) -> int:
        """Answers that the whole grid gives."""
        return len(self.photos) * len(self.settings) * self.repeats

    @property
    def n_done(self) -> int:
        """Answers that are there."""
        return sum(result.status != "cancelled" for result in self.answers.values())

    def seconds_left(self, now: float) -> float | None:
        """From the pace since the first answer; None before there is one."""
        if self.first_answer is None or self.n_done < 2 or now <= self.first_answer:
            return None
        return (now - self.first_answer) / (self.n_done - 1) * (self.n_wanted - self.n_done)

    def results(self) -> list[GridCell]:
        """The answers so far, block by block, as a comparison takes them."""
        return [
            replace(
                block,
                results=[r for (s, k, _), r in sorted(self.answers.items(), key=lambda a: a[0]) if (s, k) == place],
            )
            for place, block in self.grid_cells.items()
        ]


@dataclass(frozen=True, slots=True)
class State:
    """A panel at rest or at work.

    Attributes
    ----------
    photos : tuple of Photo
        Those offered.
    chosen : frozenset of int
        Positions of those that the next run looks at.
    prompt : str
        What the next run asks.
    options : mapping
        The options of the next run that do not vary.
    vary : mapping
        Options and their values to try.
    repeats : int
        How often each is asked.
    phase : {"idle", "running", "stopping"}
    message, tone : str
        What the panel says, and whether it is a fault.
    trial, before : Trial or None
        The last run, and the one before it.

    Examples
    --------
    >>> state = State(photos=(Photo("a", b"..."),), prompt="What is it?").choose([0])
    >>> state.start(now=0.0).phase
    'running'
    """

    photos: tuple[Photo, ...] = ()
    chosen: frozenset[int] = frozenset()
    prompt: str = ""
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    vary: Mapping[str, Sequence[Any]] = field(default_factory=lambda: MappingProxyType({}))
    repeats: int = 1
    phase: Phase = "idle"
    message: str = ""
    tone: Tone = "info"
    trial: Trial | None = None
    before: Trial | None = None

    def with_message(self, message: str, tone: Tone = "info") -> State:
        """The same, saying something else."""
        return replace(self, message=message, tone=tone)

    def add(self, photos: Sequence[Photo]) -> State:
        """Offer more pictures; they are chosen at once."""
        new = range(len(self.photos), len(self.photos) + len(photos))
        return replace(self, photos=(*self.photos, *photos), chosen=self.chosen | set(new))

    def choose(self, positions: Sequence[int]) -> State:
        """Choose the pictures of the next run."""
        return replace(self, chosen=frozenset(at for at in positions if 0 <= at < len(self.photos)))

    def ask(
        self, prompt: str, options: Mapping[str, Any], vary: Mapping[str, Sequence[Any]], repeats: int = 1
    ) -> State:
        """Set what the next run asks."""
        return replace(
            self,
            prompt=prompt,
            options=MappingProxyType(dict(options)),
            vary=MappingProxyType(dict(vary)),
            repeats=repeats,
        )

    @property
    def asked(self) -> dict[str, Any]:
        """All options that do not vary, the prompt among them."""
        return {**self.options, "prompt": self.prompt}

    def config(self) -> Config:
        """The options that do not vary.

        Raises
        ------
        ConfigError
            One breaks its rule.
        """
        return Config(**self.asked)

    def settings(self) -> tuple[Setting, ...]:
        """The grid of the next run.

        Raises
        ------
        ConfigError
            An option breaks its rule.
        """
        if not self.vary:
            return (Setting((), self.config(), 0),)
        return tuple(expand(self.vary, self.asked))  # type: ignore[arg-type]  # Config checks them

    def start(self, now: float) -> State:
        """Begin a run, or say what keeps it from beginning."""
        if self.phase != "idle":
            return self.with_message("A run is at work already: wait for it, or press Cancel first.", "error")
        if not self.chosen:
            return self.with_message("No picture is chosen: tick one above, or upload one.", "error")
        if not self.prompt.strip():
            return self.with_message("There is no prompt: write what to ask of the pictures.", "error")
        try:
            settings = self.settings()
        except ConfigError as error:
            return self.with_message(f"{error}", "error")
        photos = tuple(self.photos[at] for at in sorted(self.chosen))
        trial = Trial(photos, settings, self.repeats, self.prompt, now)
        kept = self.trial if self.trial is not None and self.trial.n_done else self.before
        return replace(self, phase="running", trial=trial, before=kept).with_message("Loading the model…")

    def began(self, block: GridCell) -> State:
        """A setting is about to be run."""
        if self.trial is None:
            return self
        grid_cells = MappingProxyType({**self.trial.grid_cells, (block.setting, block.repeat): block})
        label = self.trial.settings[block.setting].label
        trial = replace(self.trial, grid_cells=grid_cells)
        return replace(self, trial=trial).with_message(f"Looking{f' with {label}' if label else ''}…")

    def answered(self, setting: int, repeat: int, result: Result, now: float) -> State:
        """An answer came."""
        if self.trial is None:
            return self
        answers = MappingProxyType({**self.trial.answers, (setting, repeat, result.row): result})
        first = self.trial.first_answer if self.trial.first_answer is not None else now
        return replace(self, trial=replace(self.trial, answers=answers, first_answer=first))

    def stop(self) -> State:
        """Cancel was pressed."""
        return replace(self, phase="stopping").with_message("Stopping…") if self.phase == "running" else self

    def finish(self, now: float, notes: Sequence[str] = ()) -> State:
        """The run ended, by itself or by Cancel."""
        if self.trial is None:
            return replace(self, phase="idle")
        trial = replace(self.trial, notes=tuple(dict.fromkeys(notes)))
        done, wanted = trial.n_done, trial.n_wanted
        failed = sum(result.status == "error" for result in trial.answers.values())
        took = f"{now - trial.started:.1f} s"
        told = f"{done} of {wanted} answers in {took}"
        state = replace(self, phase="idle", trial=trial)
        if done < wanted:
            return state.with_message(f"Stopped with {told}; what is done is kept.")
        if failed:
            return state.with_message(f"Done: {told}; {failed} failed, each says why.", "error")
        return state.with_message(f"Done: {told}.")

    def fail(self, message: str) -> State:
        """The run broke; answers that came are kept."""
        return replace(self, phase="idle").with_message(message, "error")
