"""Parts of a panel that ipywidgets lacks: a status line, a button that opens a section, and an upload in slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from qwenvl_kit.html import plain

MAX_UPLOAD = 32 * 2**20
_LONGEST_NAME = 100
_STATIC = Path(__file__).parent / "static"


def static_text(name: str) -> str:
    """Return a script or style sheet of the package."""
    return (_STATIC / name).read_text(encoding="utf-8")


class StatusLine(anywidget.AnyWidget):  # type: ignore[misc]  # anywidget has no types here
    """A line of plain text. Screen readers are told the announcements only.

    Attributes
    ----------
    value : str
        The line.
    tone : {"info", "error"}
    announcement : str
        What screen readers say, such as the start and the end of a run.

    Examples
    --------
    >>> StatusLine(value="Done: 4 of 4 answers.").tone
    'info'
    """

    _esm = static_text("status_line.js")
    _css = static_text("status_line.css")
    value = traitlets.Unicode("").tag(sync=True)
    tone = traitlets.Unicode("info").tag(sync=True)
    announcement = traitlets.Unicode("").tag(sync=True)


class Disclosure(anywidget.AnyWidget):  # type: ignore[misc]
    """A button that opens and closes a section; the headers of ipywidgets' Accordion cannot be reached by keyboard.

    Attributes
    ----------
    label : str
    opened : bool

    Examples
    --------
    >>> Disclosure(label="Parameters").opened
    False
    """

    _esm = static_text("disclosure.js")
    _css = static_text("disclosure.css")
    label = traitlets.Unicode("").tag(sync=True)
    opened = traitlets.Bool(False).tag(sync=True)


class Uploader(anywidget.AnyWidget):  # type: ignore[misc]
    """A button that receives files in slices of 1 MiB.

    Parameters
    ----------
    on_files : callable
        Called with the names and bytes of the files of one choice, and with a sentence for each file that is too large.

    Examples
    --------
    >>> got = []
    >>> uploader = Uploader(lambda files, refused: got.extend(files))
    >>> uploader.receive({"kind": "begin", "files": [{"name": "a.png", "size": 3}]}, [])
    [0]
    >>> uploader.receive({"kind": "slice", "at": 0}, [b"abc"]), uploader.receive({"kind": "end"}, []), got
    ([0], [], [('a.png', b'abc')])
    """

    _esm = static_text("uploader.js")
    label = traitlets.Unicode("Upload images").tag(sync=True)

    def __init__(self, on_files: Callable[[Sequence[tuple[str, bytes]], Sequence[str]], None]) -> None:
        super().__init__()
        self._on_files = on_files
        self._names: list[str] = []
        self._coming: dict[int, bytearray] = {}
        self._refused: list[str] = []
        self.on_msg(lambda _, content, buffers: self.send({"accepted": self.receive(content, buffers)}))

    def receive(self, content: dict[str, Any], buffers: Sequence[bytes | memoryview]) -> list[int]:
        """Take a message of the button; return the positions of the files that are still to come."""
        if content["kind"] == "begin":
            self._begin([(plain(one["name"], _LONGEST_NAME), int(one["size"])) for one in content["files"]])
        elif content["kind"] == "slice":
            self._take(content["at"], buffers)
        else:
            files = [(self._names[at], bytes(data)) for at, data in self._coming.items()]
            refused, self._coming, self._refused = self._refused, {}, []
            self._on_files(files, refused)
        return list(self._coming)

    def _begin(self, files: Sequence[tuple[str, int]]) -> None:
        self._names = [name for name, _ in files]
        self._coming = {at: bytearray() for at, (_, size) in enumerate(files) if size <= MAX_UPLOAD}
        self._refused = [
            f"{name} was not added: {size} bytes exceed the upload limit of {MAX_UPLOAD}; pass its path instead"
            for name, size in files
            if size > MAX_UPLOAD
        ]

    def _take(self, at: int, buffers: Sequence[bytes | memoryview]) -> None:
        data = self._coming.get(at)
        if data is not None and len(data) + sum(map(len, buffers)) <= MAX_UPLOAD:  # a page may send what it likes
            for part in buffers:
                data += part
