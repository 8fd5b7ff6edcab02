"""Write to a terminal or a pipe: no name, answer or message controls it, and no encoding ends the work."""

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
    r"""Return `text` with control characters as escapes and half characters replaced; those in `keep` stay.

    Examples
    --------
    >>> escape("a\x1b[2J\nb\u202e")
    'a\\x1b[2J\\nb\\u202e'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if character in keep else _escaped(character) for character in text)


def whole(text: str) -> str:
    r"""Return `text` as it can be written in UTF-8: bytes of a file name that are no text become a replacement.

    Examples
    --------
    >>> whole("caf\udce9.png")
    'caf\ufffd.png'
    """
    if text.isascii():
        return text
    return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)


class SafeStream:
    """A text stream through which nothing but text goes, and which never fails for what the text or the reader is.

    Parameters
    ----------
    stream : text file
        Where it goes.
    keep : str
        Control characters that pass.
    ignored : type of OSError
        After such an error the rest is dropped.
    """

    def __init__(self, stream: TextIO, keep: str, ignored: type[OSError] = BrokenPipeError) -> None:
        self._stream, self._keep, self._ignored = stream, keep, ignored

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write; what the encoding lacks is replaced, and once nobody reads, the rest is dropped."""
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
        """Write each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is held back."""
        try:
            self._stream.flush()
        except self._ignored:
            silence(self._stream)


@contextlib.contextmanager
def safe_output() -> Iterator[None]:
    """Let all that is printed meanwhile go through a `SafeStream`."""
    # tqdm draws its bar over itself with \r. A fault of the error output cannot be told anywhere.
    with contextlib.ExitStack() as stack:
        if sys.stdout is not None:
            stack.enter_context(contextlib.redirect_stdout(cast("TextIO", SafeStream(sys.stdout, "\n\t"))))
        if sys.stderr is not None:
            stack.enter_context(contextlib.redirect_stderr(cast("TextIO", SafeStream(sys.stderr, "\n\t\r", OSError))))
        yield


def silence(stream: TextIO) -> None:
    """Send what a stream still holds, and all that follows, nowhere: else Python's last flush fails in its stead."""
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
