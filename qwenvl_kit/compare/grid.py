"""Settings and pictures in, the results of every setting and repeat out; each model is loaded once.

It knows no frames: `qwenvl_kit.compare.tidy` makes one of what it gives.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qwenvl_kit.checkpoints.resolve import warn_ignored_options
from qwenvl_kit.compare.memory import measure_peak
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.executors import local
from qwenvl_kit.images import FetchCache, is_null
from qwenvl_kit.inference.backend import Control, make_spec
from qwenvl_kit.pipeline.progress import Tick, progress_bar

if TYPE_CHECKING:
    from qwenvl_kit.compare.settings import Setting
    from qwenvl_kit.inference.backend import BackendSpec
    from qwenvl_kit.pipeline import Run
    from qwenvl_kit.types import Result

OnResult = Callable[[int, int, "Result"], None]
OnStart = Callable[["Block"], None]


@dataclass(frozen=True, slots=True)
class Block:
    """All rows of one setting in one repeat."""

    setting: int
    repeat: int
    results: list[Result]
    seed: int | None
    factor: int
    peak_mib: float | None


@dataclass(slots=True)
class GridRun:
    """What a grid gave, whole or in part.

    Attributes
    ----------
    blocks : list of Block
        In the order in which they ran; rows that were not reached have status ``cancelled``, blocks that were not
        begun are absent.
    loads : list of dict
        Which models were looked with in turn, and the seconds that loading and one token took.
    seconds : float
        Of the whole grid.
    memory : str or None
        What the peak means.
    records : dict
        What ran, by the setting's label.
    unheeded : tuple of str
        Options that were named and do not take effect, each with the reason.
    interrupted : bool
        Ctrl-C ended it.
    failure : BaseException or None
        What broke the backend.
    """

    blocks: list[Block] = field(default_factory=list)
    loads: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    memory: str | None = None
    records: dict[str, Any] = field(default_factory=dict)
    unheeded: tuple[str, ...] = ()
    interrupted: bool = False
    failure: BaseException | None = None


def run_grid(
    cells: Sequence[object],
    prompts: Sequence[str | None] | None,
    settings: Sequence[Setting],
    *,
    repeats: int = 1,
    control: Control | None = None,
    on_start: OnStart | None = None,
    on_result: OnResult | None = None,
    shown: bool = False,
    stacklevel: int | None = 2,
) -> GridRun:
    """Run every setting on every picture, settings that share a loaded model one after the other.

    Parameters
    ----------
    cells : sequence
        One per row.
    prompts : sequence of str or None
        One per row; None where the setting's own prompt is asked of all.
    settings : sequence of Setting
        From `expand`.
    repeats : int
        How often each is asked.
    control : Control, optional
        Cancels the whole grid; its listeners hear the rows of each block.
    on_start : callable, optional
        Called with each block before it runs, still without results.
    on_result : callable, optional
        Called as ``on_result(setting, repeat, result)`` from a thread of the run.
    shown : bool
        Draw a progress bar over the whole grid.
    stacklevel : int or None
        Where options that cannot take effect are warned of; None for doors that show the record's notes instead.

    Raises
    ------
    ConfigError, ModelNotFound
        Of any setting, or of an engine other than ``local``, before the first one runs.
    """
    for engine in (setting.config.engine for setting in settings):
        if engine != "local":
            raise ConfigError(
                f"engine must be 'local' where settings are compared, since each model is loaded here once; got "
                f"{engine!r}; leave engine out"
            )
    specs = [make_spec(setting.config) for setting in settings]
    if stacklevel is not None:
        _announce(settings, specs, stacklevel + 1)
    work = _Work(prompts, settings, specs, repeats, control or Control(), on_start, on_result)
    work.gave.unheeded = tuple(
        dict.fromkeys(note for pair in zip(settings, specs, strict=True) for note in _named(*pair))
    )
    started = time.perf_counter()
    try:
        with FetchCache() as work.cache, progress_bar(len(cells) * len(settings) * repeats, shown=shown) as tick:
            work.run(cells, tick)
    except KeyboardInterrupt:  # between two blocks; within one the runner takes it
        work.gave.interrupted = True
    work.gave.seconds = time.perf_counter() - started
    return work.gave


class _Work:
    """One grid at work."""

    def __init__(
        self,
        prompts: Sequence[str | None] | None,
        settings: Sequence[Setting],
        specs: Sequence[BackendSpec],
        repeats: int,
        control: Control,
        on_start: OnStart | None,
        on_result: OnResult | None,
    ) -> None:
        self._prompts, self._settings, self._specs = prompts, settings, specs
        self._repeats, self._control = repeats, control
        self._on_start, self._on_result = on_start, on_result
        self._lock = threading.Lock()
        self._n_done = self._n_failed = 0
        self._tick: Tick = lambda _done, _failed: None
        self.cache: FetchCache | None = None
        self.gave = GridRun()

    def run(self, cells: Sequence[object], tick: Tick) -> None:
        self._tick = tick
        loaded: str | None = None
        for at in _by_model(self._specs):
            if not self._may_go_on():
                return
            if self._specs[at].identity != loaded:
                loaded = self._specs[at].identity
                self._warm_up(at, cells)
            for repeat in range(self._repeats):
                if self._may_go_on():
                    self._run_block(at, repeat, cells)

    def _may_go_on(self) -> bool:
        return not (self.gave.interrupted or self.gave.failure or self._control.cancel.is_set())

    def _warm_up(self, at: int, cells: Sequence[object]) -> None:
        """Load the model and let it look once, so that no setting pays for being the first."""
        config = self._settings[at].config.replace(max_caption_length=1, store=None, progress=False)
        asked = zip(cells, self._prompts_of(at, len(cells)), strict=True)
        first = next(((cell, prompt) for cell, prompt in asked if prompt and not is_null(cell)), None)
        if first is None:
            return
        started = time.perf_counter()
        control = Control(self._control.cancel)
        run = local.execute([first[0]], [first[1]], config, control=control, stacklevel=None, cache=self.cache)
        seconds = round(time.perf_counter() - started, 3)
        self._note_end(run)
        self.gave.loads.append({**self._varied_load_options(at), "seconds": seconds})

    def _varied_load_options(self, at: int) -> dict[str, Any]:
        resolved = self._specs[at].resolved
        return {"backend": resolved.backend, "model": resolved.model, "dtype": resolved.dtype}

    def _run_block(self, at: int, repeat: int, cells: Sequence[object]) -> None:
        setting, spec = self._settings[at], self._specs[at]
        seed = None if spec.resolved.seed is None else spec.resolved.seed + repeat
        block = Block(at, repeat, [], seed, spec.geometry.factor, None)
        if self._on_start is not None:
            self._on_start(block)
        config = setting.seeded(repeat).replace(progress=False)
        control = replace(self._control, on_result=lambda result: self._hear(at, repeat, result))
        with measure_peak() as peak:
            prompts = self._prompts_of(at, len(cells))
            run = local.execute(cells, prompts, config, control=control, stacklevel=None, cache=self.cache)
        self._note_end(run)
        self.gave.memory = peak.kind
        self.gave.records[setting.label] = run.record["effective"]
        self.gave.blocks.append(replace(block, results=run.results, peak_mib=peak.mib))

    def _prompts_of(self, at: int, n_rows: int) -> Sequence[str | None]:
        return self._prompts if self._prompts is not None else [self._settings[at].config.prompt] * n_rows

    def _note_end(self, run: Run) -> None:
        self.gave.interrupted |= run.interrupted
        self.gave.failure = self.gave.failure or run.failure

    def _hear(self, at: int, repeat: int, result: Result) -> None:
        with self._lock:
            self._n_done += 1
            self._n_failed += result.status == "error"
            self._tick(self._n_done, self._n_failed)
        if self._control.on_result is not None:
            self._control.on_result(result)
        if self._on_result is not None:
            self._on_result(at, repeat, result)


def _by_model(specs: Sequence[BackendSpec]) -> list[int]:
    """Positions, those that share a loaded model together, in the order in which the models first appear."""
    identities = list(dict.fromkeys(spec.identity for spec in specs))
    return sorted(range(len(specs)), key=lambda at: identities.index(specs[at].identity))


def _announce(settings: Sequence[Setting], specs: Sequence[BackendSpec], stacklevel: int) -> None:
    """Say once what cannot take effect, however many settings share it."""
    said: set[tuple[str, ...]] = set()
    for setting, spec in zip(settings, specs, strict=True):
        notes = _named(setting, spec)
        if notes and notes not in said:
            said.add(notes)
            warn_ignored_options(setting.config, spec.resolved, stacklevel=stacklevel + 1)


def _named(setting: Setting, spec: BackendSpec) -> tuple[str, ...]:
    return tuple(str(note) for note in spec.resolved.notes if note.option in setting.config.explicit)
