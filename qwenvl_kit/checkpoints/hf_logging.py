"""Keeps transformers' progress bars and advice out of the caller's notebook; what is done meanwhile is unknown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers.utils import logging


@contextlib.contextmanager
def silence_transformers() -> Iterator[None]:
    """Errors only, no bars, for as long as the context lasts."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
