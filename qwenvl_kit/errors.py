"""Every error and warning this package raises, in one tree.

::

    QwenVLError
    ├── ConfigError        (ValueError)         an option breaks its rule, or cannot be honoured under ``strict=True``
    ├── UnknownOption      (TypeError)          an option that does not exist
    ├── ColumnNotFound     (KeyError)           a column that the frame lacks
    ├── ModelNotFound      (FileNotFoundError)  no checkpoint where the options point
    ├── CheckpointError    (ValueError)         a folder that is no usable Qwen2.5-VL checkpoint
    ├── StoreError         (OSError)            the store's file cannot be read or written
    ├── MissingExtra       (ImportError)        an optional dependency is not installed
    ├── RowError                                one row's fault; ends as a ``Result``, not as an exception
    ├── RowErrors                               some rows failed under ``on_error="raise"``
    ├── ExportFailed       (RuntimeError)       an ONNX export was not written, or is not equal to its source
    ├── BackendBusy        (RuntimeError)       a call on a model from inside its own run
    ├── ForkedProcess      (RuntimeError)       a call in a process that was forked while a model or a run was up
    └── BackendFailed      (RuntimeError)       the backend itself broke; nothing of one row
    Interrupted            (KeyboardInterrupt)  the run was stopped by Ctrl-C
    QwenVLWarning          (UserWarning)
    ├── OptionWarning                           an option was given that cannot take effect
    ├── RowErrorWarning                         some rows of a finished run are errors
    └── StoreWarning                            a store was moved aside, or something of it left out

Errors whose arguments are more than a message say how they are rebuilt, since workers hand them on as pickles.
"""

from __future__ import annotations

import re
from typing import Any, Literal

Stage = Literal["fetch", "decode", "resize", "generate"]
"""Where in its way through the house a row failed."""

# Messages quote what strangers wrote, and end in terminals and tables: control characters and half characters (C0, C1,
# surrogates), line and paragraph separators, marks that reverse the direction of writing, and tags are replaced.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
_LONGEST_MESSAGE = 2000


def printable(text: str, length: int = _LONGEST_MESSAGE) -> str:
    r"""Return a text on one line, without control characters, and with at most `length` characters.

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
        The rows that were finished, where a run was under way; None elsewhere.
    """

    results: Any = None


class ConfigError(QwenVLError, ValueError):
    """An option breaks its rule; the message names field, rule, value and the nearest fix."""


class UnknownOption(QwenVLError, TypeError):
    """An option that does not exist; the message names the nearest one."""


class ColumnNotFound(QwenVLError, KeyError):
    """A column that the frame does not have; the message lists those it has."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print the repr, quotes and all


class ModelNotFound(QwenVLError, FileNotFoundError):
    """No checkpoint was found; the message lists every place that was looked at."""


class CheckpointError(QwenVLError, ValueError):
    """A folder or file that is no usable checkpoint of the Qwen2.5-VL family."""


class StoreError(QwenVLError, OSError):
    """The store's file is none, is broken, or cannot be written."""


class MissingExtra(QwenVLError, ImportError):
    """An optional dependency is missing.

    Parameters
    ----------
    purpose : str
        What it is needed for, such as ``"reading s3:// addresses"``.
    extra : str
        The extra of this package that brings it.
    """

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs an extra: pip install 'qwenvl_kit[{extra}]'")
        self.purpose = purpose
        self.extra = extra

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.purpose, self.extra), vars(self)


class RowError(QwenVLError):
    """One row's fault: the row ends with status ``error`` and the others go on.

    Parameters
    ----------
    stage : {"fetch", "decode", "resize", "generate"}
        Where the row failed.
    message : str
        What went wrong, with the source, and what to do about it. Never contains a secret. Control characters are
        replaced, and a very long message is cut.

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
    """Some rows failed and ``on_error="raise"`` was asked for; raised after all rows are finished.

    Attributes
    ----------
    results : object
        What the call would have returned under ``on_error="keep"``.
    """

    def __init__(self, message: str, results: Any) -> None:
        super().__init__(message)
        self.results = results

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.results), vars(self)


class ExportFailed(QwenVLError, RuntimeError):
    """An ONNX export could not be written, or does not answer as its source does; nothing of it is left."""


class BackendBusy(QwenVLError, RuntimeError):
    """A model was called from inside its own run, which would wait for itself for ever."""


class ForkedProcess(QwenVLError, RuntimeError):
    """The process was forked from one with a loaded model, whose threads and locks did not come along."""


class BackendFailed(QwenVLError, RuntimeError):
    """The backend broke in the middle of a run.

    Attributes
    ----------
    results : object
        The rows that were finished; the others have status ``error``.
    """

    def __init__(self, message: str, results: Any = None) -> None:
        super().__init__(message)
        self.results = results


class Interrupted(KeyboardInterrupt):
    """The run was interrupted; a KeyboardInterrupt, so that "Run all" in a notebook stops here.

    Attributes
    ----------
    results : object
        What the call would have returned: finished rows as they are, the rest with status ``cancelled``.
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
        The rows that were finished, where the warning was made an error at the end of a run; None elsewhere.
    """

    results: Any = None


class OptionWarning(QwenVLWarning):
    """The caller named an option that cannot take effect here; the record shows what ran instead."""


class RowErrorWarning(QwenVLWarning):
    """A finished run has rows with status ``error``; the message counts them by stage."""


class StoreWarning(QwenVLWarning):
    """A broken store was moved aside, the record of a run was not stored, or rows of a store cannot be read."""
