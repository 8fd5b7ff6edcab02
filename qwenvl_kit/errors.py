"""All errors and warnings of this package, in one tree.

::

    QwenVLError
    ├── ConfigError        (ValueError)         an invalid option, or an ignored one under ``strict=True``
    ├── UnknownOption      (TypeError)          an option that does not exist
    ├── ColumnNotFound     (KeyError)           no such column in the frame
    ├── ModelNotFound      (FileNotFoundError)  no checkpoint at the searched locations
    ├── CheckpointError    (ValueError)         not a usable Qwen2.5-VL checkpoint
    ├── StoreError         (OSError)            a store that cannot be read or written
    ├── ServerError        (ConnectionError)    a model server that cannot be used
    ├── MissingExtra       (ImportError)        an optional dependency is not installed
    ├── RowError                                error of one row; becomes a ``Result``
    ├── RowErrors                               failed rows under ``on_error="raise"``
    ├── ExportFailed       (RuntimeError)       an ONNX export that failed, or differs from its source
    ├── InsufficientMemory (MemoryError)        a model that no memory of this machine can hold
    ├── BackendBusy        (RuntimeError)       a call on a model from inside its own run
    ├── ForkedProcess      (RuntimeError)       a call in a process forked with a loaded model or an active run
    └── BackendFailed      (RuntimeError)       error of the backend, for all rows
    Interrupted            (KeyboardInterrupt)  Ctrl-C ended the run
    QwenVLWarning          (UserWarning)
    ├── CostWarning                             an image takes over a minute, or a model more than free memory
    ├── OptionWarning                           an explicit option is ignored, or the device computes slowly
    ├── RowErrorWarning                         failed rows of a finished run
    └── StoreWarning                            a store was moved aside, or parts of it left out

Errors with other arguments than a message define `__reduce__`, since workers send them as pickles.
"""

from __future__ import annotations

import re
from typing import Any, Literal

Stage = Literal["fetch", "decode", "resize", "generate", "write"]
"""The stage at which a row failed."""

# Messages quote untrusted text, and are shown in terminals and tables. Replaced are control characters (C0, C1),
# surrogates, line and paragraph separators, bidirectional marks, and tags.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_LONGEST_MESSAGE = 2000


def printable(text: str, length: int = _LONGEST_MESSAGE) -> str:
    r"""Return a text on one line, without control characters, cut to `length` characters.

    Examples
    --------
    >>> printable("red: \x1b[31m, next:\nline")
    'red: �[31m, next: line'
    >>> printable("A" * 10, 5)
    'AAAA…'
    """
    text = text[: length + 1]
    if not text.isprintable():
        text = _UNPRINTABLE.sub(lambda found: " " if found.group().isspace() else "�", text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


class QwenVLError(Exception):
    """Base of all errors of this package.

    Attributes
    ----------
    results : object
        Finished rows, where a run was active; else None.
    """

    results: Any = None


class ConfigError(QwenVLError, ValueError):
    """An option is invalid; the message names the value, the allowed values and a remedy."""


class UnknownOption(QwenVLError, TypeError):
    """An option does not exist; the message names the nearest one."""


class ColumnNotFound(QwenVLError, KeyError):
    """The frame has no such column; the message lists its columns."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print the repr, quotes and all


class ModelNotFound(QwenVLError, FileNotFoundError):
    """No checkpoint was found; the message lists the searched locations."""


class CheckpointError(QwenVLError, ValueError):
    """A folder or file is not a usable checkpoint of the Qwen2.5-VL family."""


class StoreError(QwenVLError, OSError):
    """The store's file is not a store, is broken, or cannot be written."""


class ServerError(QwenVLError, ConnectionError):
    """A model server is not reachable, refuses the key, or does not speak the OpenAI-compatible protocol."""


class MissingExtra(QwenVLError, ImportError):
    """An optional dependency is missing.

    Parameters
    ----------
    purpose : str
        What requires it, such as ``"reading s3:// URLs"``.
    extra : str
        The extra of this package that installs it.
    """

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} requires an extra. Install it: pip install 'qwenvl_kit[{extra}]'")
        self.purpose = purpose
        self.extra = extra

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.purpose, self.extra), vars(self)


class RowError(QwenVLError):
    """Error of one row: it gets status ``error``, and other rows continue.

    Parameters
    ----------
    stage : {"fetch", "decode", "resize", "generate", "write"}
        Where the row failed.
    message : str
        The problem, with the source, and the remedy, without secrets. Control characters are replaced, and a very
        long message is cut.

    Attributes
    ----------
    source : str or None
        Label of the image's source, once the message begins with it.
    """

    source: str | None = None

    def __init__(self, stage: Stage, message: str) -> None:
        message = printable(message)
        super().__init__(message)
        self.stage: Stage = stage
        self.message = message

    def name_source(self, label: str) -> None:
        """Begin the message with the label of the image's source; a second call changes nothing."""
        if self.source is None:
            self.source = label
            self.message = printable(f"{label}: {self.message}")
            self.args = (self.message,)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stage, self.message), vars(self)


class RowErrors(QwenVLError):
    """Rows failed under ``on_error="raise"``; raised after the last row.

    Attributes
    ----------
    results : object
        The return value under ``on_error="keep"``.
    """

    def __init__(self, message: str, results: Any) -> None:
        super().__init__(message)
        self.results = results

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.results), vars(self)


class ExportFailed(QwenVLError, RuntimeError):
    """An ONNX export could not be written, or differs from its source; its files are removed."""


class InsufficientMemory(QwenVLError, MemoryError):
    """The weights of a model exceed all memory of their device; nothing was loaded."""


class BackendBusy(QwenVLError, RuntimeError):
    """A model was called from inside its own run, which would deadlock."""


class ForkedProcess(QwenVLError, RuntimeError):
    """The process was forked with a loaded model or an active run, whose threads a fork does not copy."""


class BackendFailed(QwenVLError, RuntimeError):
    """The backend failed during a run.

    Attributes
    ----------
    results : object
        Finished rows; other rows have status ``error``.
    """

    def __init__(self, message: str, results: Any = None) -> None:
        super().__init__(message)
        self.results = results


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended the run; a KeyboardInterrupt, so that "Run all" in a notebook stops.

    Attributes
    ----------
    results : object
        The return value, in which unfinished rows have status ``cancelled``.
    """

    def __init__(self, message: str, results: Any) -> None:
        super().__init__(message)
        self.results = results

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.results), vars(self)


class QwenVLWarning(UserWarning):
    """Base of all warnings of this package.

    Attributes
    ----------
    results : object
        Finished rows, where a filter raises the warning at the end of a run; else None.
    """

    results: Any = None


class CostWarning(QwenVLWarning):
    """An image takes more than a minute on this device, or a model more memory than is free."""


class OptionWarning(QwenVLWarning):
    """An explicit option is ignored, or the device computes slowly with it; the record shows what ran."""


class RowErrorWarning(QwenVLWarning):
    """A finished run has rows with status ``error``; the message counts them by stage."""


class StoreWarning(QwenVLWarning):
    """A broken store was moved aside, the record of a run was not stored, or rows of a store cannot be read."""
