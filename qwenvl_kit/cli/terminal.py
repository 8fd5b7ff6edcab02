"""Write to a terminal or a pipe without control characters and without encoding errors."""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from typing import TextIO

_JOINERS = frozenset("\u200c\u200d")  # invisible, but part of words and of emoji
_CONTROLS = frozenset(("Cc", "Cf", "Zl", "Zp"))  # controls, direction marks and other invisible ones, line separators


def escape(text: str, *, keep: str = "") -> str:
    r"""Return `text` with control characters escaped and surrogates replaced; `keep` lists exceptions.

    Examples
    --------
    >>> escape("a\x1b[2J\nb\u202e")
    'a\\x1b[2J\\nb\\u202e'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if character in keep else _escaped(character) for character in text)


def whole(text: str) -> str:
    r"""Return `text` as valid UTF-8; undecodable bytes of a file name are replaced.

    Examples
    --------
    >>> whole("caf\udce9.png")
    'caf\ufffd.png'
    """
    if text.isascii():
        return text
    return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)


class SafeStream:
    """A text stream that escapes control characters, replaces unencodable ones, and ignores closed pipes.

    Parameters
    ----------
    stream : text file
        The stream to write to.
    keep : str
        Control characters to keep.
    ignored : type of OSError
        Errors after which further output is discarded.
    """

    def __init__(self, stream: TextIO, keep: str, ignored: type[OSError] = BrokenPipeError) -> None:
        self._stream, self._keep, self._ignored = stream, keep, ignored

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write; discard the text after an ignored error."""
        safe = escape(text, keep=self._keep)
        try:
            try:
                self._stream.write(safe)
            except UnicodeEncodeError:
                encoding = self._stream.encoding or "ascii"
                self._stream.write(safe.encode(encoding, "replace").decode(encoding))
        except self._ignored:
            silence(self._stream)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._stream.flush()
        except self._ignored:
            silence(self._stream)


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Redirect stdout and stderr through `SafeStream`."""
    # tqdm redraws its bar with \r. Errors of stderr cannot be reported.
    with contextlib.ExitStack() as stack:
        if sys.stdout is not None:
            stack.enter_context(contextlib.redirect_stdout(cast("TextIO", SafeStream(sys.stdout, "\n\t"))))
        if sys.stderr is not None:
            stack.enter_context(contextlib.redirect_stderr(cast("TextIO", SafeStream(sys.stderr, "\n\t\r", OSError))))
        yield


def silence(stream: TextIO) -> None:
    """Redirect a stream to the null device, so that Python's final flush does not fail."""
    # https://docs.python.org/3/library/signal.html#note-on-sigpipe
    with contextlib.suppress(OSError, ValueError):  # a stream without a file
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _escaped(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Cs":
        return "\ufffd"
    if kind not in _CONTROLS or character in _JOINERS:
        return character
    return character.encode("unicode_escape").decode()
