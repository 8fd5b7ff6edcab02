"""Drives one run: plan, load ahead, let the backend pull, settle, and stop in good order.

The caller's thread only waits and shows progress; work happens beside it, where Ctrl-C does not reach.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qwenvl_kit.images import FetchCache, ImageLoader, Limits, Sizing, close_idle_connections, is_unchanged
from qwenvl_kit.images.decode_pool import pool as decode_pool
from qwenvl_kit.inference.backend import Backend, BackendSpec, Control
from qwenvl_kit.pipeline.cache_key import CacheKeyBuilder
from qwenvl_kit.pipeline.collector import ResultCollector
from qwenvl_kit.pipeline.plan import make_plan
from qwenvl_kit.pipeline.prefetch import ImagePrefetcher
from qwenvl_kit.pipeline.progress import progress_bar
from qwenvl_kit.pipeline.run_record import RunClock, make_record, missing
from qwenvl_kit.pipeline.source_index import SourceIndex
from qwenvl_kit.pipeline.threads import release_openmp_threads, worker

if TYPE_CHECKING:
    from qwenvl_kit.options import Config
    from qwenvl_kit.pipeline.collector import Store
    from qwenvl_kit.types import Result

_REFRESH_S = 0.1


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave.

    Attributes
    ----------
    results : list of Result
        One per row, in order.
    record : dict
        What was asked, what ran and how it went, as plain JSON values.
    interrupted : bool
        Ctrl-C ended it; the missing rows have status ``cancelled``.
    failure : BaseException or None
        What broke the backend; the missing rows have status ``error``.
    """

    results: list[Result]
    record: dict[str, Any]
    interrupted: bool = False
    failure: BaseException | None = None


def run(
    cells: Sequence[object],
    prompts: Sequence[str | None],
    config: Config,
    spec: BackendSpec,
    acquire: Callable[[], AbstractContextManager[Backend]],
    *,
    control: Control | None = None,
    store: Store | None = None,
    cache: FetchCache | None = None,
) -> Run:
    """Answer one prompt per cell.

    Parameters
    ----------
    cells : sequence
        One picture, or list of pictures, per row.
    prompts : sequence of str or None
        One per row.
    config : Config
        Limits, and what was asked.
    spec : BackendSpec
        The model.
    acquire : callable
        Gives the loaded backend for the time of the run; called only once there is something to ask.
    control : Control, optional
        Cancels and listens.
    store : Store, optional
        Keeps answers beyond the run.
    cache : FetchCache, optional
        Keeps fetched files beyond the run.

    Returns
    -------
    Run
        Never shorter or longer than `cells`.

    Examples
    --------
    >>> from contextlib import nullcontext
    >>> from qwenvl_kit import Config
    >>> from qwenvl_kit.executors.specs import make_spec
    >>> config = Config(backend="echo", progress=False)
    >>> spec = make_spec(config)
    >>> run([None], ["What?"], config, spec, lambda: nullcontext(spec.load())).results[0].status
    'null_image'
    """
    clock = RunClock()
    control = control or Control()
    notes: list[str] = []
    collector = ResultCollector(len(cells), store, control.on_result)
    job = _Job(cells, prompts, config, spec, acquire, replace(control, note=notes.append), collector, store, cache)
    interrupted = job.run_to_end()
    results = collector.close(functools.partial(missing, failure=job.failure))
    record = make_record(config, spec.resolved, results, notes, clock)
    return Run(results, record, interrupted, job.failure)


class _Job:
    """The threads of one run."""

    def __init__(
        self,
        cells: Sequence[object],
        prompts: Sequence[str | None],
        config: Config,
        spec: BackendSpec,
        acquire: Callable[[], AbstractContextManager[Backend]],
        control: Control,
        collector: ResultCollector,
        store: Store | None,
        cache: FetchCache | None,
    ) -> None:
        self._spec, self._acquire, self._control, self._collector = spec, acquire, control, collector
        self._n_rows, self._shown = len(cells), config.progress
        plan = make_plan(cells, prompts, config.image_src_type)
        for result in plan.results:
            collector.add(result)
        sizing, limits = Sizing.of(config, spec.geometry), Limits.of(config)
        source_index = None
        if store is not None:
            probe = functools.partial(is_unchanged, limits=limits.fetch)
            source_index = SourceIndex(store, probe, trusts=config.trust_sources)

        self._queue = ImagePrefetcher(
            plan,
            ImageLoader(sizing, limits, control.cancel, cache),
            CacheKeyBuilder(spec.resolved, config.system_prompt),
            collector,
            known_digests=source_index.digests if source_index is not None else lambda _: None,
            remember=source_index.remember if source_index is not None else lambda _source, _image: None,
            system=config.system_prompt,
            max_new_tokens=config.max_caption_length,
            cancel=control.cancel,
        )
        self._ended = threading.Event()
        self.failure: BaseException | None = None

    def run_to_end(self) -> bool:
        """Run until all rows are settled, the run is cancelled or broken; True when Ctrl-C ended it."""
        backend_thread = worker(self._serve, "backend")
        release_openmp_threads()
        try:
            try:
                backend_thread.start()
            except RuntimeError as error:  # the system gives no more threads
                self.failure = error
                self._control.cancel.set()
                return False
            self._wait(shown=self._shown)
        except KeyboardInterrupt:
            self._control.cancel.set()
            with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C does not wait for the backend to stop
                backend_thread.join()
            return True
        return False

    def _serve(self) -> None:
        try:
            self._queue.start()
            if self._queue.wait():
                with self._acquire() as backend:
                    for result in backend.generate(self._queue, self._spec.resolved, self._control):
                        self._collector.add(result)
                self._check_taken()
        except BaseException as error:  # noqa: BLE001  # the caller's thread raises it, with the results
            self.failure = error
            self._control.cancel.set()
        finally:
            self._queue.join()
            decode_pool.close_idle()
            close_idle_connections()
            if self._collector.n_done < self._n_rows and not self._control.cancel.is_set():
                self.failure = RuntimeError("the backend returned without an answer for every row")
            self._ended.set()

    def _check_taken(self) -> None:
        if not self._control.cancel.is_set() and self._queue.get(1, block=True) is not None:
            raise RuntimeError("the backend returned before all requests were taken")

    def _wait(self, *, shown: bool) -> None:
        with progress_bar(self._n_rows, shown=shown) as tick:
            while not self._ended.wait(_REFRESH_S):
                tick(self._collector.n_done, self._collector.counts["error"])
            tick(self._collector.n_done, self._collector.counts["error"])
