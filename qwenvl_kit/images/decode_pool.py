"""Decode images in processes that can be ended, since a decoder that holds the GIL can be ended no other way.

For files whose decoding is not provably short (`qwenvl_kit.images.probe`): they get CPU time and memory in proportion
to their bytes, and a process that takes more, or crashes, costs one row. Processes start with the first such file, and
end with the run. A crafted JPEG of 1.4 MB was seen to take minutes, and a JPEG 2000 of 1 kB two gigabytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
from PIL import Image, ImageFile

from qwenvl_kit._cpu import available_cpus
from qwenvl_kit.errors import RowError
from qwenvl_kit.images.budget import Budget
from qwenvl_kit.images.decode_worker import max_memory, receive, receive_pixels, send

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwenvl_kit.images.resize import Sizing

TIMED_BYTES, TIMED_PIXELS = 4 * 2**20, 32_000_000
"""A larger file gets ``decode_timeout_s`` once for each so many bytes, or pixels that its header tells of: 22 MB of
JPEG 2000 were seen to take 3 s."""

N_WORKERS = max(2, available_cpus())
"""Most processes."""

_MEMORY = 3 * 2**30  # that all of them may take
_POLL_S = 0.05
_PIPE_BYTES = 1 << 20  # Linux's own limit for users: https://man7.org/linux/man-pages/man7/pipe.7.html
_WALL_FACTOR, _WALL_S = 10, 10  # a process that neither computes nor answers is ended too, be the machine ever so busy
_PACKAGE = Path(__file__).parent.parent
# Without the package's __init__, which imports pandas; without the caller's environment, which may hold keys.
_SCRIPT = f"""
import json, sys, types
sys.path[:] = json.loads(sys.argv[1])
for name, folder in (("qwenvl_kit", {str(_PACKAGE)!r}), ("qwenvl_kit.images", {str(_PACKAGE / "images")!r})):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [folder]
from qwenvl_kit.images.decode_worker import main
main()
"""
_SETTINGS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_ENVIRONMENT = ("LD_", "DYLD_", "OPENBLAS_", "SYSTEMROOT", "LANG", "LC_", "TMPDIR", "PYTHONDONTWRITEBYTECODE")


class DecodeCancelled(RowError):
    """A decoder was ended because the run was cancelled: the row is as if it had not been begun."""


class DecodePool:
    """A few processes that decode images; threads share them, and each call has one to itself.

    Parameters
    ----------
    n_workers : int
        Most processes.
    """

    def __init__(self, n_workers: int = N_WORKERS) -> None:
        self._n_workers = n_workers
        self._memory = Budget(_MEMORY)
        self._changed = threading.Condition()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._n_started = 0
        self._watcher: threading.Thread | None = None

    def decode(
        self,
        data: bytes,
        label: str,
        sizing: Sizing,
        *,
        max_image_pixels: int,
        n_pixels: int,
        timeout_s: float,
        cancel: threading.Event | None = None,
    ) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Decode and resize an image, as `qwenvl_kit.images.decode.decode_resized` does.

        Parameters
        ----------
        data, label, sizing, max_image_pixels
            As there.
        n_pixels : int
            Those that the header tells of; 0 where it tells none.
        timeout_s : float
            Most CPU time in seconds, for each `TIMED_BYTES` of the file or `TIMED_PIXELS`.
        cancel : threading.Event, optional
            Ends the process once it is set.

        Raises
        ------
        DecodeCancelled
            `cancel` was set before it was done.
        RowError
            The image is broken, takes too long or too much memory, or crashes its decoder.
        """
        budget_s = timeout_s * max(1.0, len(data) / TIMED_BYTES, n_pixels / TIMED_PIXELS)
        # Pillow's own settings, which callers change, hold there as they do here.
        of_pillow = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
        job = pickle.dumps((label, sizing, max_image_pixels, of_pillow))
        with self._memory.take(max_memory(len(data)) // 8), self._lend() as worker:
            worker.begin(budget_s, cancel)
            try:
                head, pixels = worker.ask(job, data)
            finally:
                worker.end()
            if head is None or pixels is None:
                kind = DecodeCancelled if worker.was_cancelled else RowError
                raise kind("decode", f"{label} {worker.reason(timeout_s)}")
        outcome, first, second = pickle.loads(head)
        if outcome == "error":
            raise RowError(first, second)
        return pixels.reshape(first), second

    def close_idle(self, *, keep: int = 0) -> None:
        """End the processes that decode nothing, but for the `keep` that were used last."""
        with self._changed:
            idle = self._idle[: len(self._idle) - keep]
            del self._idle[: len(idle)]
            self._n_started -= len(idle)
            self._changed.notify_all()
        for worker in idle:
            worker.stop()

    @contextlib.contextmanager
    def _lend(self) -> Iterator[_Worker]:
        with self._changed:
            while not self._idle and self._n_started >= self._n_workers:
                self._changed.wait()
            worker = self._idle.pop() if self._idle else None
            self._n_started += worker is None
        is_usable = False
        try:
            if worker is None:
                worker = _Worker()
            self._watch(worker)
            yield worker
            is_usable = worker.is_alive()
        finally:
            with self._changed:
                if worker is not None:
                    self._busy.discard(worker)
                if is_usable and worker is not None:
                    self._idle.append(worker)
                else:
                    self._n_started -= 1
                self._changed.notify_all()
            if worker is not None and not is_usable:
                worker.stop()

    def _watch(self, worker: _Worker) -> None:
        """Have an eye on a worker; the one thread that does it for all ends when there is nothing to watch."""
        with self._changed:
            self._busy.add(worker)
            if self._watcher is None:
                watcher = threading.Thread(target=self._watch_all, name="qwenvl_kit-decode-watch", daemon=True)
                watcher.start()
                self._watcher = watcher
            self._changed.notify_all()

    def _watch_all(self) -> None:
        while True:
            with self._changed:
                if not self._busy and not self._changed.wait_for(lambda: bool(self._busy), timeout=1.0):
                    self._watcher = None
                    return
                busy = list(self._busy)
            for worker in busy:
                worker.stop_if_due()
            time.sleep(_POLL_S)

    def after_fork(self) -> None:
        """Begin anew in a forked child, whose parent has the processes and the threads."""
        for worker in (*self._idle, *self._busy):
            worker.forget()
        self._changed = threading.Condition()
        self._idle, self._busy, self._n_started, self._watcher = [], set(), 0, None


@dataclass(slots=True)
class _Turn:
    """What a job may take, and since when."""

    budget_s: float
    cpu_s: float
    started: float
    cancel: threading.Event | None


class _Worker:
    """One process; a thread asks it, another one watches."""

    def __init__(self) -> None:
        if not sys.executable:
            raise RuntimeError("sys.executable names no Python that could decode in a process of its own")
        kept = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
        path = json.dumps([place for place in sys.path if place])
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SCRIPT, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # so that a forked child has nothing to flush into the parent's pipes
            env={**kept, **_SETTINGS},
            start_new_session=True,  # Ctrl-C is the run's affair
        )
        for pipe in self._pipes():
            _widen(pipe.fileno())
        self._lock = threading.Lock()
        self._turn: _Turn | None = None
        self._why: str | None = None
        self.was_cancelled = False

    def begin(self, budget_s: float, cancel: threading.Event | None) -> None:
        """Start the clock."""
        with self._lock:
            self._turn = _Turn(budget_s, self._cpu_s(), time.monotonic(), cancel)

    def end(self) -> None:
        """Stop the clock."""
        with self._lock:
            self._turn = None

    def ask(self, job: bytes, data: bytes) -> tuple[bytearray | None, NDArray[np.uint8] | None]:
        """Hand over a job and wait for the answer; None where the process ended instead."""
        jobs, answers = (pipe.fileno() for pipe in self._pipes())
        try:
            send(jobs, job)
            send(jobs, data)
            return receive(answers), receive_pixels(answers)
        except (BrokenPipeError, ConnectionResetError):  # it ended while it was written to
            return None, None

    def stop_if_due(self) -> None:
        """End the process whose job took too long or was cancelled."""
        with self._lock:
            turn = self._turn
            if turn is None:
                return
            wall_s = time.monotonic() - turn.started
            if turn.cancel is not None and turn.cancel.is_set():
                self._why, self.was_cancelled = "was not decoded, since the run was cancelled", True
            elif self._cpu_s() - turn.cpu_s > turn.budget_s or wall_s > _WALL_FACTOR * turn.budget_s + _WALL_S:
                self._why = "took too long to decode"
            else:
                return
            self._process.kill()

    def reason(self, timeout_s: float) -> str:
        """Why there was no answer."""
        if self._why == "took too long to decode":
            return f"{self._why}: more than decode_timeout_s={timeout_s:g}; raise decode_timeout_s if you trust it"
        if self._why is not None:
            return self._why
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # it closed its pipes, and lives on
            return "cannot be decoded: its decoder no longer answers"
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"cannot be decoded: its decoder crashed ({how})"

    def is_alive(self) -> bool:
        """Whether it can take another job."""
        return self._why is None and self._process.poll() is None

    def stop(self) -> None:
        """End the process and close its pipes."""
        self._process.kill()
        for pipe in self._pipes():
            pipe.close()
        self._process.wait(timeout=10)

    def forget(self) -> None:
        """Let go of it in a forked child, whose parent has the process."""
        for pipe in self._pipes():
            pipe.close()
        self._process.returncode = 0  # else its end in the child would warn that it still runs

    def _pipes(self) -> tuple[BinaryIO, BinaryIO]:
        return cast("BinaryIO", self._process.stdin), cast("BinaryIO", self._process.stdout)

    def _cpu_s(self) -> float:
        """CPU seconds of the process so far; where the system does not tell, the clock's."""
        try:
            with open(f"/proc/{self._process.pid}/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()  # the name before it may hold anything
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return time.monotonic()


def _widen(pipe: int) -> None:
    """Let a pipe hold more, so that the two sides take fewer turns; Linux alone can, and only so much is allowed."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


pool = DecodePool()
"""The one pool of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.after_fork)
