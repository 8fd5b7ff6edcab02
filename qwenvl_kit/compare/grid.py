"""Run a grid of settings over images: every setting and repeat, with each model loaded once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qwenvl_kit.checkpoints.resolve import warn_ignored_options
from qwenvl_kit.compare.memory import measure_peak
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.images import FetchCache, is_null
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.pipeline.progress import Tick, progress_bar
from qwenvl_kit.types import Prompt

if TYPE_CHECKING:
    from qwenvl_kit.compare.settings import Setting
    from qwenvl_kit.inference.backend import BackendSpec
    from qwenvl_kit.options import Config
    from qwenvl_kit.pipeline import Run
    from qwenvl_kit.types import Result, RowPrompt

OnResult = Callable[[int, int, "Result"], None]
OnStart = Callable[["GridCell"], None]
RowPrompts = Callable[[str | None], "Sequence[RowPrompt]"]
"""Return the prompts of all rows, given the ``prompt`` of a setting."""


@dataclass(frozen=True, slots=True)
class GridCell:
    """All rows of one setting in one repeat."""

    setting: int
    repeat: int
    results: list[Result]
    seed: int | None
    factor: int
    peak_mib: float | None


@dataclass(slots=True)
class GridRun:
    """Results of a grid, complete or partial.

    Attributes
    ----------
    blocks : list of GridCell
        In the order in which they ran. Unfinished rows have status ``cancelled``; unstarted cells are absent.
    loads : list of dict
        Each loaded model, with the seconds for loading and one token.
    seconds : float
        Wall time of the whole grid.
    memory : str or None
        What the peak memory measures.
    records : dict
        Resolved options by the setting's label.
    ignored_options : tuple of str
        Explicit options that are ignored, each with the reason.
    interrupted : bool
        Ctrl-C ended the grid.
    failure : BaseException or None
        The backend's error.
    """

    grid_cells: list[GridCell] = field(default_factory=list)
    loads: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    memory: str | None = None
    records: dict[str, Any] = field(default_factory=dict)
    ignored_options: tuple[str, ...] = ()
    interrupted: bool = False
    failure: BaseException | None = None


def run_grid(
    cells: Sequence[object],
    prompts: RowPrompts,
    settings: Sequence[Setting],
    *,
    repeats: int = 1,
    control: Control | None = None,
    on_start: OnStart | None = None,
    on_result: OnResult | None = None,
    shown: bool = False,
    warn_ignored: bool = True,
) -> GridRun:
    """Run every setting on every image, grouped by loaded model.

    Parameters
    ----------
    cells : sequence
        One per row.
    prompts : callable
        Called with a setting's ``prompt``; returns one per row.
    settings : sequence of Setting
        From `expand`.
    repeats : int
        Runs of each setting.
    control : Control, optional
        Cancels the whole grid; its callbacks get the rows of each cell.
    on_start : callable, optional
        Called with each cell, without results, before it runs.
    on_result : callable, optional
        Called as ``on_result(setting, repeat, result)`` from a thread of the run.
    shown : bool
        Draw a progress bar over the whole grid.
    warn_ignored : bool
        Warn of ignored options; False for callers that show the record's notes instead.

    Raises
    ------
    ConfigError, ModelNotFound
        Of any setting, or of an engine other than ``local``, before the first one runs.
    """
    for engine in (setting.config.engine for setting in settings):
        if engine != "local":
            raise ConfigError(
                f"engine={engine!r} is not supported in comparisons, which load each model once in this process. "
                "Use engine='local'."
            )
    specs = [make_spec(setting.config) for setting in settings]
    if warn_ignored:
        _warn_ignored_options(settings, specs)
    work = _Work(prompts, settings, specs, repeats, control or Control(), on_start, on_result)
    work.run.ignored_options = tuple(
        dict.fromkeys(note for pair in zip(settings, specs, strict=True) for note in _ignored_options(*pair))
    )
    started = time.perf_counter()
    try:
        with FetchCache() as work.cache, progress_bar(len(cells) * len(settings) * repeats, shown=shown) as tick:
            work.execute(cells, tick)
    except KeyboardInterrupt:  # between two cells; within one the pipeline handles it
        work.run.interrupted = True
    work.run.seconds = time.perf_counter() - started
    return work.run


class _Work:
    """One grid in progress."""

    def __init__(
        self,
        prompts: RowPrompts,
        settings: Sequence[Setting],
        specs: Sequence[BackendSpec],
        repeats: int,
        control: Control,
        on_start: OnStart | None,
        on_result: OnResult | None,
    ) -> None:
        self._prompts, self._settings, self._specs = prompts, settings, specs
        self._repeats, self._control = repeats, control
        self._report_start, self._report_result = on_start, on_result
        self._lock = threading.Lock()
        self._n_done = self._n_failed = 0
        self._tick: Tick = lambda _done, _failed, _text: None
        self.cache: FetchCache | None = None
        self.run = GridRun()

    def execute(self, cells: Sequence[object], tick: Tick) -> None:
        self._tick = tick
        loaded: str | None = None
        for at in _by_model(self._specs):
            if not self._may_continue():
                return
            if self._specs[at].identity != loaded:
                loaded = self._specs[at].identity
                self._warm_up(at, cells)
            for repeat in range(self._repeats):
                if self._may_continue():
                    self._run_cell(at, repeat, cells)

    def _may_continue(self) -> bool:
        return not (self.run.interrupted or self.run.failure or self._control.cancel.is_set())

    def _warm_up(self, at: int, cells: Sequence[object]) -> None:
        """Load the model and generate one token, so that the first setting is not charged for the load."""
        config = self._settings[at].config.replace(max_caption_length=1, store=None, progress=False)
        asked = zip(cells, self._prompts(config.prompt), strict=True)
        can_run = ((cell, one) for cell, one in asked if isinstance(one, str | Prompt) and one and not is_null(cell))
        first = next(can_run, None)
        if first is None:
            return
        started = time.perf_counter()
        control = Control(self._control.cancel)
        run = _execute([first[0]], [first[1]], config, control, self.cache)
        seconds = round(time.perf_counter() - started, 3)
        self._note_end(run)
        self.run.loads.append({**self._varied_load_options(at), "seconds": seconds})

    def _varied_load_options(self, at: int) -> dict[str, Any]:
        resolved = self._specs[at].resolved
        return {"backend": resolved.backend, "model": resolved.model, "dtype": resolved.dtype}

    def _run_cell(self, at: int, repeat: int, cells: Sequence[object]) -> None:
        setting, spec = self._settings[at], self._specs[at]
        seed = None if spec.resolved.seed is None else spec.resolved.seed + repeat
        cell = GridCell(at, repeat, [], seed, spec.geometry.factor, None)
        if self._report_start is not None:
            self._report_start(cell)
        config = setting.seeded(repeat).replace(progress=False)
        control = replace(self._control, on_result=lambda result: self._on_result(at, repeat, result))
        with measure_peak() as peak:
            run = _execute(cells, self._prompts(config.prompt), config, control, self.cache)
        self._note_end(run)
        self.run.memory = peak.kind
        self.run.records[setting.label] = run.record["effective"]
        self.run.grid_cells.append(replace(cell, results=run.results, peak_mib=peak.mib))

    def _note_end(self, run: Run) -> None:
        self.run.interrupted |= run.interrupted
        self.run.failure = self.run.failure or run.failure

    def _on_result(self, at: int, repeat: int, result: Result) -> None:
        with self._lock:
            self._n_done += 1
            self._n_failed += result.status == "error"
            self._tick(self._n_done, self._n_failed, "")
        if self._control.on_result is not None:
            self._control.on_result(result)
        if self._report_result is not None:
            self._report_result(at, repeat, result)


def _by_model(specs: Sequence[BackendSpec]) -> list[int]:
    """Return positions grouped by model, in order of the models' first appearance."""
    identities = list(dict.fromkeys(spec.identity for spec in specs))
    return sorted(range(len(specs)), key=lambda at: identities.index(specs[at].identity))


def _warn_ignored_options(settings: Sequence[Setting], specs: Sequence[BackendSpec]) -> None:
    """Warn once of each set of ignored options, however many settings share it."""
    warned: set[tuple[str, ...]] = set()
    for setting, spec in zip(settings, specs, strict=True):
        notes = _ignored_options(setting, spec)
        if (notes or spec.resolved.advice) and notes not in warned:
            warned.add(notes)
            warn_ignored_options(setting.config, spec.resolved)


def _ignored_options(setting: Setting, spec: BackendSpec) -> tuple[str, ...]:
    return tuple(str(note) for note in spec.resolved.notes if note.option in setting.config.explicit)


def _execute(
    cells: Sequence[object],
    prompts: Sequence[RowPrompt],
    config: Config,
    control: Control,
    cache: FetchCache | None,
) -> Run:
    from qwenvl_kit.executors import local  # brings SQLite and the pipeline, which importing the package leaves out

    return local.execute(cells, prompts, config, control=control, warn_ignored=False, cache=cache)
