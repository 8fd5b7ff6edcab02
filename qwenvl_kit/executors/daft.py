"""Run on workers of Daft, on this machine or on Ray.

The driver resolves rows that need no model, sends the others out in batches and collects results as they come. After
the death of a worker its batches are sent again; finished results stay.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qwenvl_kit.checkpoints.resolve import asked_record, warn_ignored_options
from qwenvl_kit.errors import ConfigError, OptionWarning, QwenVLError, RowError
from qwenvl_kit.executors.base import refuse_nested_run, without_record
from qwenvl_kit.executors.daft_batches import DaftWorkers
from qwenvl_kit.executors.serialization import BatchInfo, WorkItem, from_fields, unpack_error
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.pipeline import Run
from qwenvl_kit.pipeline.collector import ResultCollector
from qwenvl_kit.pipeline.plan import Group, make_plan
from qwenvl_kit.pipeline.run import collect
from qwenvl_kit.pipeline.run_record import RunClock, make_record
from qwenvl_kit.store import open_store

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.options import Config
    from qwenvl_kit.types import RowPrompt

_MAX_DEATHS = 3  # times that workers may die without a single new result before the run ends


def execute(
    cells: Sequence[object],
    prompts: Sequence[RowPrompt],
    config: Config,
    *,
    control: Control | None = None,
) -> Run:
    """Run on Daft's workers; each loads the model once.

    Raises
    ------
    BackendBusy
        Called from a callback of a run.
    ConfigError
        The cluster cannot do what is asked, or `control` has `on_token`: tokens stay with the workers.
    MissingExtra
        Daft or Ray is not installed.
    StoreError
        The store cannot be used.
    """
    control = control or Control()
    _check_listeners(config, control)
    refuse_nested_run()
    clock = RunClock()
    if config.store is not None:
        with open_store(config.store):  # its faults are raised before any work
            pass
    collector = ResultCollector(len(cells), None, control.on_result)
    driver = _Driver(cells, prompts, config, control, collector)
    outcome = collect(driver.run, collector, control.cancel, show_progress=config.progress)
    info = driver.info(outcome.failure)
    failure = outcome.failure or _warning_as_error(config, info.resolved)
    record = make_record(asked_record(config), prompts, info.resolved, outcome.results, info.notes, clock)
    return _recorded(Run(outcome.results, record, outcome.interrupted, failure, info.notes), config)


def _check_listeners(config: Config, control: Control) -> None:
    if control.on_token is not None:
        raise ConfigError(
            f"on_token cannot be called with engine={config.engine!r}, whose tokens stay with the workers. Pass "
            "on_result= instead, or engine='local'."
        )


def _warning_as_error(config: Config, resolved: ResolvedConfig) -> OptionWarning | None:
    """Warn of ignored options; return the warning where warnings are errors, since the work is done."""
    try:
        warn_ignored_options(config, resolved)
    except OptionWarning as warning:
        return warning
    return None


def _recorded(run: Run, config: Config) -> Run:
    if config.store is None:
        return run
    try:
        with open_store(config.store) as store:
            store.add_run(run.record)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # no error may cost the results now
        return without_record(run, error)
    return run


class _Driver:
    """The work items of one run that have no answer yet."""

    def __init__(
        self,
        cells: Sequence[object],
        prompts: Sequence[RowPrompt],
        config: Config,
        control: Control,
        collector: ResultCollector,
    ) -> None:
        self._config, self._control, self._collector = config, control, collector
        self._info: BatchInfo | None = None
        self._notes: dict[str, None] = {}
        plan = make_plan(cells, prompts, config.image_src_type)
        for result in plan.results:
            collector.add(result)
        self._groups = dict(enumerate(plan.groups))
        self._packed = {at: packed for at, group in self._groups.items() if (packed := self._pack(cells, group))}
        self._workers = DaftWorkers(config) if self._packed else None

    def run(self) -> None:
        """Send work items until all are answered, the run is cancelled, or workers only die."""
        n_deaths = 0
        while self._packed and not self._control.cancel.is_set():
            n_before = len(self._packed)
            try:
                self._send_all()
            except _Broken as broken:
                raise broken.error from None
            except Exception as error:
                # What fails in our own code comes back as a value: this is a worker's death, or Daft's own.
                n_deaths = n_deaths + 1 if len(self._packed) == n_before else 1
                if n_deaths >= _MAX_DEATHS:
                    raise
                self._notes[f"a worker died ({type(error).__name__}); its rows ran again"] = None

    def info(self, failure: BaseException | None) -> BatchInfo:
        """Return what ran, as the workers report it; or as this machine would run it where there was no work."""
        if self._info is not None:
            return BatchInfo(self._info.resolved, tuple(self._notes))
        try:
            return BatchInfo(make_spec(self._config).resolved, tuple(self._notes))
        except QwenVLError:  # the model is missing here too; the workers' error comes first
            if failure is not None:
                raise failure from None
            raise

    def _pack(self, cells: Sequence[object], group: Group) -> bytes | None:
        try:
            return WorkItem(cells[group.prompts[0].row], tuple(ref.prompt for ref in group.prompts)).pack()
        except RowError as error:
            for ref in group.prompts:
                self._collector.fail(ref.row, error)
            return None

    def _send_all(self) -> None:
        assert self._workers is not None, "there are workers where there are work items"
        for batch in self._workers.answers(self._packed):
            failures = []
            for at, answer in zip(batch["at"], batch["answer"], strict=True):
                if answer["failure"] is not None:
                    failures.append(unpack_error(answer["failure"]))
                if answer["results"]:  # a broken worker's finished results count
                    self._add(at, answer)
            if failures:
                raise _Broken(failures[0])
            if self._control.cancel.is_set():
                return

    def _add(self, at: int, answer: dict[str, Any]) -> None:
        if answer["info"] is not None:
            info: BatchInfo = pickle.loads(answer["info"])
            self._info = self._info or info
            self._notes.update(dict.fromkeys(info.notes))
        if self._packed.pop(at, None) is None:  # sent twice: its first answer was lost on the way and then found
            return
        for ref, values in zip(self._groups[at].prompts, answer["results"], strict=True):
            self._collector.add(from_fields(values, ref.row))


class _Broken(Exception):
    """An error of a worker that ends the whole run."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error
