"""Turn exceptions of the work on one image into row errors, and name its source in them once."""

from __future__ import annotations

import errno
import re
from types import TracebackType
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from qwenvl_kit.errors import RowError

if TYPE_CHECKING:
    from qwenvl_kit.errors import Stage

_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")  # an object's address in memory differs from run to run


class stage_context:  # used like a function; as one of contextlib's it took five times as long a row
    """Turn any exception of a ``with`` block into a `RowError` of a stage.

    Libraries raise what no list foresees; cancellation and the interpreter's exits are no `Exception` and pass.

    Parameters
    ----------
    stage : {"fetch", "decode", "resize"}
        The stage of loading.
    what : str
        The failed step, such as ``"Cannot decode the image"``.

    Raises
    ------
    RowError
        In the place of any other exception, with its class in the message.
    """

    __slots__ = ("_stage", "_what")

    def __init__(self, stage: Stage, what: str) -> None:
        self._stage, self._what = stage, what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, RowError):
            raise RowError(self._stage, _message(self._what, error)) from error


class source_context:
    """Do as `stage_context`, and name the image's source in every `RowError` of the block, once.

    Parameters
    ----------
    label : str
        Name of the source, free of secrets.
    stage, what
        As for `stage_context`.

    Raises
    ------
    RowError
        Its message begins with the label.

    Examples
    --------
    >>> with source_context("a.png", "decode", "Cannot decode the image"):
    ...     raise KeyError("c/0/0")
    Traceback (most recent call last):
    qwenvl_kit.errors.RowError: a.png: Cannot decode the image: KeyError: 'c/0/0'
    """

    __slots__ = ("_label", "_stage", "_what")

    def __init__(self, label: str, stage: Stage, what: str) -> None:
        self._label, self._stage, self._what = label, stage, what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, RowError):
            error.name_source(self._label)
        elif isinstance(error, Exception):
            named = RowError(self._stage, _message(self._what, error))
            named.name_source(self._label)
            raise named from error


def safe_reason(error: BaseException) -> str:
    """Name an exception without its message, which may contain keys and signed URLs."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if getattr(one, "errno", None) in (errno.EMFILE, errno.ENFILE):
            return "too many open files in this process; see ulimit -n"
        one = one.__cause__ or one.__context__
    if isinstance(error, MemoryError):
        return "out of memory"
    strerror = error.strerror if type(error).__module__ == "builtins" and isinstance(error, OSError) else None
    return f"{type(error).__name__}, {strerror}" if strerror else type(error).__name__


def _message(what: str, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return (  # Pillow's own limit is lower
            f"The image is too large for Pillow: {_first_line(error)} Raise max_image_pixels and "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        )
    if isinstance(error, UnidentifiedImageError):  # its message contains an address in memory
        return f"{what}: its header is broken or cut short."
    if isinstance(error, MemoryError):
        return f"{what}: out of memory. Lower max_image_pixels, or free memory."
    return f"{what}: {type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    try:
        return _ADDRESS.sub("", (str(error).splitlines() or ["without a message"])[0])[:200]
    except Exception:  # noqa: BLE001  # a message that cannot be made is none
        return "without a message"
