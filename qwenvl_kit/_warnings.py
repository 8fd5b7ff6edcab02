"""Warn where the caller's code called this package."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings

# Package code, the context managers it enters, and the machinery of imports that end in it.
_SKIPPED = (os.path.dirname(__file__) + os.sep, contextlib.__file__, "<frozen importlib")


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning at the nearest frame outside this package, as ``skip_file_prefixes`` of Python 3.12 does."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_SKIPPED):
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        category,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__", "<string>"),  # exec may run code without a name
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )
