"""Cells and prompts in, a `Run` out, answered by workers of Daft on this machine or on Ray.

The driver settles what needs no model, sends the rest out in batches and enters results as they come. A worker that
dies costs the batches that it held, which are asked again; what is finished stays. How a worker answers it does not
know.
"""

from __future__ import annotations

import contextlib
import functools
import pickle
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from qwenvl_kit.checkpoints.resolve import warn_ignored_options
from qwenvl_kit.errors import BackendBusy, ConfigError, OptionWarning, QwenVLError, RowError
from qwenvl_kit.executors.base import unrecorded
from qwenvl_kit.executors.daft_setup import check_cluster, check_gpus, gpus_of_cluster, start
from qwenvl_kit.executors.daft_worker import Worker
from qwenvl_kit.executors.serialization import BatchInfo, WorkItem, from_fields, result_kinds, unpack_error
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.pipeline import Run, inside_run
from qwenvl_kit.pipeline.collector import ResultCollector
from qwenvl_kit.pipeline.plan import Group, make_plan
from qwenvl_kit.pipeline.progress import progress_bar
from qwenvl_kit.pipeline.run_record import RunClock, make_record, missing
from qwenvl_kit.pipeline.threads import worker as thread_of_run
from qwenvl_kit.store import open_store

if TYPE_CHECKING:
    from qwenvl_kit.options import Config

_N_FORWARDS, _N_LEAST = 4, 16  # forward passes, and work items, per batch: with fewer the model waits for the next one
_MAX_PARTITIONS = 256
_MAX_DEATHS = 3  # times that a job may break without a single new result before it is given up
_REFRESH_S = 0.1


def execute(
    cells: Sequence[object],
    prompts: Sequence[str | None],
    config: Config,
    *,
    control: Control | None = None,
    warn_ignored: bool = True,
) -> Run:
    """Run on Daft's workers; each loads the model once.

    Raises
    ------
    ConfigError
        The cluster cannot do what is asked, or `control` listens to tokens, which stay with the workers.
    MissingExtra
        Daft or Ray is not installed.
    """
    control = control or Control()
    if control.on_token is not None:
        raise ConfigError(
            f"on_token= listens to tokens, which stay with the workers of engine={config.engine!r}; pass on_result=, "
            "or engine='local'"
        )
    if inside_run():
        raise BackendBusy("a run was started from a callback of another run; start it after the first has returned")
    clock = RunClock()
    if config.store is not None:
        with open_store(config.store):  # what is wrong with it is told before any work
            pass
    collector = ResultCollector(len(cells), None, control.on_result)
    job = _Job(cells, prompts, config, control, collector)
    interrupted = job.run_to_end()
    results = collector.close(functools.partial(missing, failure=job.failure))
    info = job.info()
    failure = job.failure
    if warn_ignored and failure is None:
        try:
            warn_ignored_options(config, info.resolved)
        except OptionWarning as warning:  # where warnings are errors; the work is done
            failure = warning
    record = make_record(config, info.resolved, results, info.notes, clock)
    done = Run(results, record, interrupted, failure)
    if config.store is not None:
        try:
            with open_store(config.store) as store:
                store.add_run(record)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # nothing may cost the results now
            return unrecorded(done, error)
    return done


class _Job:
    """The work items of one run, and what has come back of them."""

    def __init__(
        self,
        cells: Sequence[object],
        prompts: Sequence[str | None],
        config: Config,
        control: Control,
        collector: ResultCollector,
    ) -> None:
        self._config, self._control, self._collector = config, control, collector
        self._n_rows = len(cells)
        self._info: BatchInfo | None = None
        self._notes: dict[str, None] = {}
        self._ended = threading.Event()
        self.failure: BaseException | None = None
        plan = make_plan(cells, prompts, config.image_src_type)
        for result in plan.results:
            collector.add(result)
        self._groups = dict(enumerate(plan.groups))
        self._packed = {at: packed for at, group in self._groups.items() if (packed := self._pack(cells, group))}
        self._n_workers = config.concurrency or 1
        if self._packed:
            self._daft = start(config.engine)
            self._gpus = _gpus_each(self._daft, config, self._n_workers)

    def run_to_end(self) -> bool:
        """Run until every row is settled, the run is cancelled or broken; True when Ctrl-C ended it."""
        driver = thread_of_run(self._drive, "driver")
        try:
            driver.start()
            with progress_bar(self._n_rows, shown=self._config.progress) as tick:
                while not self._ended.wait(_REFRESH_S):
                    tick(self._collector.n_done, self._collector.counts["error"])
                tick(self._collector.n_done, self._collector.counts["error"])
        except KeyboardInterrupt:
            self._control.cancel.set()
            with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C does not wait for batches under way
                driver.join()
            return True
        return False

    def info(self) -> BatchInfo:
        """What ran, as the workers tell; as this machine would have it where none had to be asked."""
        if self._info is not None:
            return BatchInfo(self._info.resolved, tuple(self._notes))
        try:
            return BatchInfo(make_spec(self._config).resolved, tuple(self._notes))
        except QwenVLError:  # a model that is not here either; what the workers said of it comes first
            if self.failure is not None:
                raise self.failure from None
            raise

    def _drive(self) -> None:
        n_deaths = 0
        try:
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
                    self._notes[f"a worker died ({type(error).__name__}); its rows were asked again"] = None
        except BaseException as error:  # noqa: BLE001  # the caller's thread raises it, with the results
            self.failure = error
        finally:
            self._ended.set()

    def _send_all(self) -> None:
        for batch in self._answers():
            failures = []
            for at, answer in zip(batch["at"], batch["answer"], strict=True):
                if answer["failure"] is not None:
                    failures.append(unpack_error(answer["failure"]))
                if answer["results"]:  # what a broken worker had finished counts
                    self._enter(at, answer)
            if failures:
                raise _Broken(failures[0])
            if self._control.cancel.is_set():
                return

    def _pack(self, cells: Sequence[object], group: Group) -> bytes | None:
        try:
            return WorkItem(cells[group.prompts[0].row], tuple(ref.prompt for ref in group.prompts)).pack()
        except RowError as error:
            for ref in group.prompts:
                self._collector.fail(ref.row, error)
            return None

    def _answers(self) -> Iterator[dict[str, Any]]:
        api, n_each = self._daft, max(_N_LEAST, self._config.batch_size * _N_FORWARDS)
        frame = api.from_pydict({"at": list(self._packed), "item": list(self._packed.values())})
        if self._config.engine == "ray" and len(self._packed) > n_each:
            # A partition comes back as a whole, so that one for all would bring nothing before the end.
            frame = frame.into_partitions(min(_MAX_PARTITIONS, -(-len(self._packed) // n_each)))
        answers = frame.select("at", self._expression(n_each)(api.col("item")).alias("answer"))
        for batch in answers.to_arrow_iter(results_buffer_size=None):
            yield batch.to_pydict()

    def _expression(self, n_each: int) -> Any:
        api = self._daft
        config = self._config.replace(engine="local", concurrency=None, num_gpus=None, progress=False, on_error="keep")

        class Qwen:  # a class of its own for each job, since Daft marks it
            def __init__(self) -> None:
                self._worker = Worker(config)

            @api.method.batch(return_dtype=_dtype(api), batch_size=n_each)  # type: ignore[untyped-decorator]
            def answer(self, packed: Any) -> list[dict[str, Any]]:
                return self._worker.answer(packed.to_pylist())

        # With a number of workers given, Daft runs each in a process of its own, on both runners.
        return api.cls(Qwen, gpus=self._gpus, max_concurrency=self._n_workers, name_override="QwenVL")().answer

    def _enter(self, at: int, answer: dict[str, Any]) -> None:
        if answer["info"] is not None:
            info: BatchInfo = pickle.loads(answer["info"])
            self._info = self._info or info
            self._notes.update(dict.fromkeys(info.notes))
        if self._packed.pop(at, None) is None:  # asked twice, since its first answer was lost on the way and then found
            return
        for ref, values in zip(self._groups[at].prompts, answer["results"], strict=True):
            self._collector.add(from_fields(values, ref.row))


class _Broken(Exception):
    """What a worker tells that ends the whole run."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))
        self.error = error


def _gpus_each(daft: Any, config: Config, n_workers: int) -> float:
    if config.engine != "ray":
        return 0.0
    check_cluster(config, n_workers)
    gpus = config.num_gpus if config.num_gpus is not None else float(gpus_of_cluster(daft) > 0)
    check_gpus(daft, gpus, n_workers)
    return gpus


def _dtype(daft: Any) -> Any:
    """The type of what `Worker.answer` gives."""
    kinds = daft.DataType
    types = {
        "text": kinds.string(),
        "whole": kinds.int64(),
        "number": kinds.float64(),
        "truth": kinds.bool(),
        "pickled": kinds.binary(),
    }
    result = kinds.struct({name: types[kind] for name, kind in result_kinds().items()})
    return kinds.struct({"results": kinds.list(result), "info": kinds.binary(), "failure": kinds.binary()})
