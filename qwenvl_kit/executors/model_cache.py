"""Keep one model loaded between runs, and let one run at a time use it."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from qwenvl_kit.checkpoints.library_errors import first_line, is_device_lost, is_out_of_memory, release_frames
from qwenvl_kit.errors import BackendFailed, ForkedProcess
from qwenvl_kit.executors.base import refuse_nested_run
from qwenvl_kit.executors.memory_check import check_memory
from qwenvl_kit.inference.cancellation import Cancelled

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import Backend, BackendSpec, RunControl

_PATIENCE_S = 0.1  # between two looks at whether a waiting run is cancelled


class ModelCache:
    """The model that stays loaded, and the lock of the run that uses it."""

    def __init__(self) -> None:
        self._in_use = threading.Lock()
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
        BackendBusy
            Entered from a callback of a run, which would wait for itself.
        ForkedProcess
            The process was forked when a model was loaded or a run was under way.
        """
        refuse_nested_run()
        if self._was_forked:
            raise ForkedProcess(
                "This process was forked while a model was loaded or a run was under way. The threads that they need "
                "exist only in the parent. Start workers with multiprocessing's 'spawn' or 'forkserver', or fork "
                "between runs, after qwenvl_kit.unload()."
            )
        with self._counting:
            self._n_runs += 1
        try:
            yield
        finally:
            with self._counting:
                self._n_runs -= 1

    @contextlib.contextmanager
    def acquire(self, spec: BackendSpec, control: RunControl | None = None) -> Iterator[Backend]:
        """Wait for the model of `spec` and hold it; it is loaded where another one, or none, is.

        Raises
        ------
        Cancelled
            `control` was cancelled while another run used the model, or while it was loaded.
        InsufficientMemory
            The weights exceed all memory of their device; see `check_memory`.
        BackendFailed
            Memory ran out while the model was loaded, or the GPU was lost during the run.
        """
        self._wait(control)
        try:
            if self._backend is None or self._identity != spec.identity:
                self._drop()
                check_memory(spec, note=None if control is None else control.note)
                self._backend, self._identity = _load(spec, control), spec.identity
            yield self._backend
        except RuntimeError as error:
            if not is_device_lost(error):
                raise
            with contextlib.suppress(RuntimeError):  # of a GPU that frees nothing either
                self._drop()
            raise BackendFailed(
                f"The GPU was lost ({first_line(error)}). The model was dropped. Restart Python (in a notebook: the "
                "kernel), since CUDA refuses further work in this process. If it happens again, set "
                "CUDA_LAUNCH_BLOCKING=1 and report the error."
            ) from error
        finally:
            self._in_use.release()

    def clear(self) -> None:
        """Free the model, once no run uses it."""
        with self._in_use:
            self._drop()

    def after_fork(self) -> None:
        """Forget in a forked child what only the parent can use; the parent may have held the locks."""
        self._in_use, self._counting = threading.Lock(), threading.Lock()
        self._was_forked = self._was_forked or self._backend is not None or self._n_runs > 0
        self._backend, self._identity, self._n_runs = None, None, 0

    def _wait(self, control: RunControl | None) -> None:
        while not self._in_use.acquire(timeout=_PATIENCE_S):
            if control is not None and control.cancel.is_set():
                raise Cancelled

    def _drop(self) -> None:
        backend, self._backend, self._identity = self._backend, None, None
        if backend is not None:
            backend.close()


def _load(spec: BackendSpec, control: RunControl | None) -> Backend:
    """Load a model; where that fails, leave nothing of it in memory."""
    with _older_objects_kept():
        try:
            return spec.load(control)
        except BaseException as error:  # noqa: BLE001  # raised below; one that was cancelled leaves half a model too
            release_frames(error)
            failure = _named(error, spec)
        from qwenvl_kit.inference.oom import free_memory  # brings torch, which a backend has loaded by now

        free_memory()  # outside the except clause: modules refer to each other, so only a collection frees them
    raise failure


@contextlib.contextmanager
def _older_objects_kept() -> Iterator[None]:
    """Let collections within skip the objects that there are now: those of the libraries take most of their time.

    A collection of all of them took 6 s on a busy machine, after Ctrl-C.
    """
    if gc.get_freeze_count():  # the caller's own freeze stays
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _named(error: BaseException, spec: BackendSpec) -> BaseException:
    """Return the error to raise: a library's words for lack of memory get a remedy."""
    if not is_out_of_memory(error):
        return error
    resolved = spec.resolved
    failure = BackendFailed(
        f"Out of memory while loading {resolved.model} in {resolved.dtype} on {resolved.device} ({first_line(error)}). "
        "Free memory, or use a 16-bit dtype, a smaller or quantised model, or device_map='auto'. "
        "`qwenvl-kit plan` says what it needs."
    )
    failure.__cause__ = error
    return failure


model_cache = ModelCache()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=model_cache.after_fork)
