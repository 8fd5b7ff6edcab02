"""Make any exception of the work on one image that image's error."""

from __future__ import annotations

import re
from types import TracebackType
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from qwenvl_kit.errors import RowError

if TYPE_CHECKING:
    from qwenvl_kit.errors import Stage

_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")  # where an object lies in memory is nobody's business


class source_context:  # used like a function; as one of contextlib's it took five times as long a row
    """Make any exception of a ``with`` block one image's error.

    Libraries raise what no list foresees; cancellation and the interpreter's exits are no `Exception` and pass.

    Parameters
    ----------
    stage : {"fetch", "decode", "resize"}
        Where the image is on its way.
    label : str
        Name of its source, free of secrets.
    what : str
        What could not be done, such as ``"cannot be decoded"``.

    Raises
    ------
    RowError
        In the place of any other exception, with its class in the message.

    Examples
    --------
    >>> with source_context("decode", "a.png", "cannot be decoded"):
    ...     raise KeyError("c/0/0")
    Traceback (most recent call last):
    qwenvl_kit.errors.RowError: a.png cannot be decoded: KeyError: 'c/0/0'
    """

    __slots__ = ("_label", "_stage", "_what")

    def __init__(self, stage: Stage, label: str, what: str) -> None:
        self._stage, self._label, self._what = stage, label, what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, RowError):
            raise RowError(self._stage, f"{self._label} {self._reason(error)}") from error

    def _reason(self, error: Exception) -> str:
        if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
            return (  # Pillow's own limit is lower
                f"is too large for Pillow: {_first_line(error)}; raise max_image_pixels and PIL.Image.MAX_IMAGE_PIXELS "
                "if you trust it"
            )
        if isinstance(error, UnidentifiedImageError):  # whose message holds an address in memory
            return f"{self._what}: its header is broken or cut short"
        if isinstance(error, MemoryError):
            return f"{self._what}: memory ran out; lower max_image_pixels, or free memory"
        return f"{self._what}: {type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    try:
        return _ADDRESS.sub("", (str(error).splitlines() or ["without a message"])[0])[:200]
    except Exception:  # noqa: BLE001  # a message that cannot be made is none
        return "without a message"
