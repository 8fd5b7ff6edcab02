"""Decode images in a pool of processes, since a decoder that holds the GIL can be ended no other way.

It serves files whose decoding is not provably short (`qwenvl_kit.images.probe`). They get CPU time and memory in
proportion to their bytes, and a process that takes more, or crashes, costs one row. Processes start with the first such
file, and end with the run. A crafted JPEG of 1.4 MB was seen to take minutes, and a JPEG 2000 of 1 kB two gigabytes.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFile

from qwenvl_kit._cpu import available_cpus
from qwenvl_kit.errors import RowError
from qwenvl_kit.images.budget import Budget
from qwenvl_kit.images.decode_process import DecodeProcess
from qwenvl_kit.images.decode_worker import max_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwenvl_kit.images.resize import TargetSize

TIMED_BYTES, TIMED_PIXELS = 4 * 2**20, 32_000_000
"""A larger file gets ``decode_timeout_s`` once for each so many bytes, or pixels by its header: 22 MB of JPEG 2000 were
seen to take 3 s."""

N_WORKERS = max(2, available_cpus())
"""Most processes."""

_MEMORY = 3 * 2**30  # of all processes
_POLL_S = 0.05


class DecodeCancelled(RowError):
    """A decoder was ended because the run was cancelled; the row counts as not begun."""


class DecodePool:
    """Processes that decode images; threads share them, and each call has one to itself.

    Parameters
    ----------
    n_workers : int
        Most processes.
    """

    def __init__(self, n_workers: int = N_WORKERS) -> None:
        self._n_workers = n_workers
        self._memory = Budget(_MEMORY)
        self._changed = threading.Condition()
        self._idle: list[DecodeProcess] = []
        self._busy: set[DecodeProcess] = set()
        self._n_started = 0
        self._watcher: threading.Thread | None = None

    def decode(
        self,
        data: bytes,
        sizing: TargetSize,
        *,
        max_image_pixels: int,
        n_pixels: int,
        n_bytes: int,
        n_result_bytes: int = 0,
        timeout_s: float,
        cancel: threading.Event | None = None,
    ) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Decode and resize an image, as `qwenvl_kit.images.decode.decode_resized` does.

        Parameters
        ----------
        data, sizing, max_image_pixels
            As there.
        n_pixels : int
            Pixels by the header; 0 where it has no size.
        n_bytes : int
            Memory that they are expected to take.
        n_result_bytes : int
            Memory of the resized image beside them.
        timeout_s : float
            Most CPU time in seconds, for each `TIMED_BYTES` of the file or `TIMED_PIXELS`.
        cancel : threading.Event, optional
            Ends the process once it is set.

        Raises
        ------
        DecodeCancelled
            `cancel` was set during decoding.
        RowError
            The image is broken, takes too long or too much memory, or crashes its decoder.
        """
        budget_s = timeout_s * max(1.0, len(data) / TIMED_BYTES, n_pixels / TIMED_PIXELS)
        # Pillow's own settings, which callers change, hold there as they do here.
        of_pillow = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
        n_image_bytes = n_bytes if n_pixels else 0
        job = pickle.dumps((sizing, max_image_pixels, of_pillow, n_image_bytes, n_result_bytes))
        with self._memory.take(max_memory(len(data), n_image_bytes, n_result_bytes) // 4), self._lend() as process:
            response = process.decode(job, data, budget_s, cancel)
            if response is None:
                kind = DecodeCancelled if process.was_cancelled else RowError
                raise kind("decode", process.failure(timeout_s))
        head, pixels = response
        outcome, first, second = pickle.loads(head)
        if outcome == "error":
            raise RowError(first, second)
        return pixels.reshape(first), second

    def close_idle(self, *, keep: int = 0) -> None:
        """End idle processes, except the `keep` that were used last."""
        with self._changed:
            idle = self._idle[: len(self._idle) - keep]
            del self._idle[: len(idle)]
            self._n_started -= len(idle)
            self._changed.notify_all()
        for process in idle:
            process.stop()

    @contextlib.contextmanager
    def _lend(self) -> Iterator[DecodeProcess]:
        process = self._take_idle()
        is_usable = False
        try:
            if process is None:
                process = DecodeProcess()
            self._watch(process)
            yield process
            is_usable = process.is_alive()
        finally:
            self._give_back(process, is_usable=is_usable)

    def _take_idle(self) -> DecodeProcess | None:
        """Return an idle process, None where a new one may be started; wait for one of the two."""
        with self._changed:
            while not self._idle and self._n_started >= self._n_workers:
                self._changed.wait()
            process = self._idle.pop() if self._idle else None
            self._n_started += process is None
            return process

    def _give_back(self, process: DecodeProcess | None, *, is_usable: bool) -> None:
        with self._changed:
            if process is not None:
                self._busy.discard(process)
            if process is not None and is_usable:
                self._idle.append(process)
            else:
                self._n_started -= 1
            self._changed.notify_all()
        if process is not None and not is_usable:
            process.stop()

    def _watch(self, process: DecodeProcess) -> None:
        """Watch a process; the one thread that watches all of them ends when none is busy."""
        with self._changed:
            self._busy.add(process)
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
            for process in busy:
                process.stop_if_due()
            time.sleep(_POLL_S)

    def after_fork(self) -> None:
        """Reset the pool in a forked child, whose parent owns the processes and the threads."""
        for process in (*self._idle, *self._busy):
            process.forget()
        self._changed = threading.Condition()
        self._idle, self._busy, self._n_started, self._watcher = [], set(), 0, None


pool = DecodePool()
"""The one pool of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.after_fork)
