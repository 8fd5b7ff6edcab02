"""Threads that work for a run."""

from __future__ import annotations

import threading
from collections.abc import Callable

_this_thread = threading.local()


def worker(work: Callable[[], None], name: str) -> threading.Thread:
    """Make a thread, not yet started, in which `inside_run` is true."""

    def marked() -> None:
        _this_thread.works = True
        work()

    return threading.Thread(target=marked, name=f"qwenvl_kit-{name}", daemon=True)


def inside_run() -> bool:
    """Whether this thread works for a run, so that a run started from it would wait for itself."""
    return getattr(_this_thread, "works", False)
