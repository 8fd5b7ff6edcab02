"""Start a process that decodes images, feed it, and end it when a job takes too long.

`qwenvl_kit.images.decode_worker` runs in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from qwenvl_kit.images.decode_worker import receive, receive_pixels, send

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PIPE_BYTES = 1 << 20  # Linux's own limit for users: https://man7.org/linux/man-pages/man7/pipe.7.html
_WALL_FACTOR, _WALL_S = 10, 10  # a process that neither computes nor answers is ended too, on the busiest machine
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


@dataclass(slots=True)
class _Job:
    """The CPU time that a job may take, and the clocks at its start."""

    budget_s: float
    cpu_s: float
    started: float
    cancel: threading.Event | None


class DecodeProcess:
    """One process: one thread sends it jobs, another one calls `stop_if_due`."""

    def __init__(self) -> None:
        if not sys.executable:
            raise RuntimeError("sys.executable names no Python to decode with in a process of its own")
        kept = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
        path = json.dumps([place for place in sys.path if place])
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SCRIPT, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # so that a forked child has nothing to flush into the parent's pipes
            env={**kept, **_SETTINGS},
            start_new_session=True,  # so that Ctrl-C reaches the run alone
        )
        for pipe in self._pipes():
            _widen(pipe.fileno())
        self._lock = threading.Lock()
        self._job: _Job | None = None
        self._is_stopped = False
        self.was_cancelled = False

    def decode(
        self, job: bytes, data: bytes, budget_s: float, cancel: threading.Event | None
    ) -> tuple[bytearray, NDArray[np.uint8]] | None:
        """Send a job and return its response; None where the process ended instead."""
        with self._lock:
            self._job = _Job(budget_s, self._cpu_s(), time.monotonic(), cancel)
        try:
            return self._exchange(job, data)
        finally:
            with self._lock:
                self._job = None

    def _exchange(self, job: bytes, data: bytes) -> tuple[bytearray, NDArray[np.uint8]] | None:
        jobs, responses = (pipe.fileno() for pipe in self._pipes())
        try:
            send(jobs, job)
            send(jobs, data)
            head, pixels = receive(responses), receive_pixels(responses)
        except (BrokenPipeError, ConnectionResetError):  # it ended while it was written to
            return None
        return None if head is None or pixels is None else (head, pixels)

    def stop_if_due(self) -> None:
        """End the process whose job took too long or was cancelled."""
        with self._lock:
            job = self._job
            if job is None:
                return
            wall_s = time.monotonic() - job.started
            if job.cancel is not None and job.cancel.is_set():
                self._is_stopped = self.was_cancelled = True
            elif self._cpu_s() - job.cpu_s > job.budget_s or wall_s > _WALL_FACTOR * job.budget_s + _WALL_S:
                self._is_stopped = True
            else:
                return
            self._process.kill()

    def failure(self, timeout_s: float) -> str:
        """Return the message on why there was no response."""
        if self.was_cancelled:
            return "Not decoded, since the run was cancelled."
        if self._is_stopped:
            return f"Decoding took longer than decode_timeout_s={timeout_s:g}. Raise it if you trust the source."
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # it closed its pipes, and lives on
            return "Cannot decode the image: its decoder no longer responds."
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return f"Cannot decode the image: its decoder crashed ({how})."

    def is_alive(self) -> bool:
        """Return whether it can take another job."""
        return not self._is_stopped and self._process.poll() is None

    def stop(self) -> None:
        """End the process and close its pipes."""
        self._process.kill()
        for pipe in self._pipes():
            pipe.close()
        self._process.wait(timeout=10)

    def forget(self) -> None:
        """Close the pipes in a forked child, whose parent owns the process."""
        for pipe in self._pipes():
            pipe.close()
        self._process.returncode = 0  # else its end in the child would warn that it still runs

    def _pipes(self) -> tuple[BinaryIO, BinaryIO]:
        return cast("BinaryIO", self._process.stdin), cast("BinaryIO", self._process.stdout)

    def _cpu_s(self) -> float:
        """Return the CPU seconds of the process; where the system has no /proc, those of the clock."""
        try:
            with open(f"/proc/{self._process.pid}/stat", "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()  # after the name, which may contain anything
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return time.monotonic()


def _widen(pipe: int) -> None:
    """Widen a pipe, so that the two sides take fewer turns; Linux alone can, up to a limit."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
