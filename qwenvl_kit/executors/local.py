"""Runs in this process, on a model that stays warm between calls.

One model is kept at a time; one run at a time uses it, others wait their turn.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from qwenvl_kit.checkpoints.resolve import warn_ignored_options
from qwenvl_kit.errors import BackendBusy, ForkedProcess, StoreError
from qwenvl_kit.executors.base import unrecorded
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.images import FetchCache, is_null
from qwenvl_kit.pipeline import inside_run, run
from qwenvl_kit.store import open_store

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import Backend, BackendSpec, Control
    from qwenvl_kit.options import Config
    from qwenvl_kit.pipeline import Run


class ModelCache:
    """The model that stays loaded, and whose turn it is."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._identity: str | None = None
        self._backend: Backend | None = None
        self._n_runs = 0
        self._counting = threading.Lock()
        self._was_forked = False

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Count a run while it lasts.

        Raises
        ------
        ForkedProcess
            The process was forked when a model was loaded or a run was under way.
        """
        if self._was_forked:
            raise ForkedProcess(
                "this process was forked while a model was loaded or a run was under way, and the threads that they "
                "need did not come along; start workers with multiprocessing's 'spawn' or 'forkserver', or fork "
                "between runs, after qwenvl_kit.unload()"
            )
        with self._counting:
            self._n_runs += 1
        try:
            yield
        finally:
            with self._counting:
                self._n_runs -= 1

    @contextlib.contextmanager
    def acquire(self, spec: BackendSpec) -> Iterator[Backend]:
        """Give the loaded model of `spec`, loading it if another one, or none, is warm."""
        with self._turn:
            if self._backend is None or self._identity != spec.identity:
                self._drop()
                self._backend, self._identity = spec.load(), spec.identity
            yield self._backend

    def clear(self) -> None:
        """Free the model, once no run uses it."""
        with self._turn:
            self._drop()

    def after_fork(self) -> None:
        """Forget in a forked child what only the parent can use; the parent may have held the lock."""
        self._turn, self._counting = threading.Lock(), threading.Lock()
        self._was_forked = self._was_forked or self._backend is not None or self._n_runs > 0
        self._backend, self._identity, self._n_runs = None, None, 0

    def _drop(self) -> None:
        backend, self._backend, self._identity = self._backend, None, None
        if backend is not None:
            backend.close()


_cache = ModelCache()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_cache.after_fork)


def execute(
    cells: Sequence[object],
    prompts: Sequence[str | None],
    config: Config,
    *,
    control: Control | None = None,
    warn_ignored: bool = True,
    keeps_record: bool = True,
    cache: FetchCache | None = None,
) -> Run:
    """Run in this process; the model is loaded when the first picture is ready, and stays warm.

    `warn_ignored` False suppresses the warning of ignored options, for callers that have issued it. `keeps_record`
    False keeps the record of the run out of the store, for callers that enter one of their own. `cache` keeps fetched
    files for callers that run several times over the same cells.

    Raises
    ------
    BackendBusy
        Called from a callback of a run, which would wait for itself.
    ForkedProcess
        The process was forked while a model was loaded or a run was under way; nothing is loaded or asked.
    ConfigError, ModelNotFound
        See `qwenvl_kit.executors.specs.make_spec`.
    """
    if inside_run():
        raise BackendBusy(
            "a run was started from a callback of another run, which would wait for itself; "
            "start it after the first has returned, or from a thread of your own"
        )
    with _cache.running():
        spec = make_spec(config)
        if warn_ignored:
            warn_ignored_options(config, spec.resolved)
        run_with = functools.partial(
            run, cells, prompts, config, spec, lambda: _cache.acquire(spec), control=control, cache=cache
        )
        if config.store is None:
            return run_with()
        done: Run | None = None
        try:
            with open_store(config.store) as store:
                done = run(
                    cells,
                    prompts,
                    config,
                    spec,
                    lambda: _cache.acquire(spec),
                    control=control,
                    store=store,
                    cache=cache,
                )
                if keeps_record:
                    store.add_run(done.record)
        except (Exception, KeyboardInterrupt) as error:
            if done is None and isinstance(error, StoreError) and all(map(is_null, cells)):  # rows that need no store
                done = run_with()
            if done is None:
                raise
            done = unrecorded(done, error)
        return done


def unload() -> None:
    """Free the model that stays warm between calls.

    Examples
    --------
    >>> import qwenvl_kit
    >>> qwenvl_kit.unload()
    """
    _cache.clear()
