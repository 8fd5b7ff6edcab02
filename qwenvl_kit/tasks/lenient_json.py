"""Read JSON out of a model's text: fenced, with single quotes, or cut; and say what was repaired."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

Path = tuple[str | int, ...]
_FENCE = re.compile(r"```(?:json|JSON)?[ \t]*\n?")
_SPACE = re.compile(r"[\s\ufeff]*")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_CUT_NUMBER = re.compile(r"[-+.\d][-+.\deE]*\Z")  # it may go on where the text ends
_WORD = re.compile(r"[A-Za-z_]\w*")
_LITERALS: dict[str, Any] = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019"}
_MAX_DEPTH = 100
_MISSING = object()  # a value whose text is cut


@dataclass(slots=True)
class ParsedJson:
    """What a text holds.

    Attributes
    ----------
    value : object
        All that is complete: of a cut list its complete items, of a cut object its complete properties.
    cut : tuple or None
        Path of the value within which the text ends; None where it is whole.
    repairs : tuple of str
        What was repaired, each once.
    spans : dict
        Where each complete number, text, truth value and null stands: path to (start, end) in the text.
    """

    value: Any
    cut: Path | None = None
    repairs: tuple[str, ...] = ()
    spans: dict[Path, tuple[int, int]] = field(default_factory=dict)


def parse_json(text: str, *, is_cut: bool = False) -> ParsedJson | None:
    """Return the first JSON value of a text, an object or list where there is one; None without any.

    Parameters
    ----------
    text : str
        A model's answer.
    is_cut : bool
        It ended at a limit, so that a number at its end may go on.

    Examples
    --------
    >>> found = parse_json("Here it is: {'count': 3, 'colours': ['red', 'bl")
    >>> found.value, found.cut
    ({'count': 3, 'colours': ['red']}, ('colours', 1))
    """
    fence = _FENCE.search(text)
    starts = [at for at in (text.find(one, fence.end() if fence else 0) for one in "{[") if at >= 0]
    begin = min(starts) if starts else (fence.end() if fence else 0)
    reader = _Reader(text, begin, is_cut=is_cut)
    try:
        value = reader.value(())
    except _NoJson:
        return None
    if value is _MISSING:
        return None
    before, after = text[:begin], text[reader.at :] if reader.cut is None else ""
    if fence:
        reader.repairs["removed a code fence"] = None
        before, after = before.replace(fence[0], "", 1), after.replace("```", "", 1)
    if before.strip() or after.strip():
        reader.repairs["removed text around it"] = None
    return ParsedJson(value, reader.cut, tuple(reader.repairs), reader.spans)


class _NoJson(Exception):
    """The text is no JSON at this place."""


class _Reader:
    def __init__(self, text: str, at: int, *, is_cut: bool) -> None:
        self.text, self.at, self._is_cut = text, at, is_cut
        self.repairs: dict[str, None] = {}
        self.spans: dict[Path, tuple[int, int]] = {}
        self.cut: Path | None = None

    def value(self, path: Path) -> Any:
        """Return the value at this place, `_MISSING` where the text ends within it."""
        if len(path) > _MAX_DEPTH:
            raise _NoJson
        first = self._peek()
        if first == "{":
            return self._object(path)
        if first == "[":
            return self._array(path)
        begin = self.at
        found = self._ended(path) if not first else self._text() if first in _QUOTES else self._bare(path)
        if found is _MISSING:
            self._ended(path)
        else:
            self.spans[path] = (begin, self.at)
        return found

    def _object(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self.at += 1
        while not self._closes("}"):
            name = self._name() if self._peek() else None
            if name is None or not self._peek():
                self._ended(path)
                return found
            self._expect(":")
            value = self.value((*path, name))
            if value is not _MISSING:
                found[name] = value
            if self.cut is not None:
                return found
        return found

    def _array(self, path: Path) -> list[Any]:
        found: list[Any] = []
        self.at += 1
        while not self._closes("]"):
            if not self._peek():
                self._ended(path)
                return found
            value = self.value((*path, len(found)))
            if self.cut is not None:
                return found  # an item that is not whole may lack what all items have
            found.append(value)
        return found

    def _closes(self, end: str) -> bool:
        """Skip a comma; return whether the object or list ends here."""
        if has_comma := self._peek() == ",":
            self.at += 1
        if self._peek() != end:
            return False
        self.at += 1
        if has_comma:
            self.repairs["removed a trailing comma"] = None
        return True

    def _name(self) -> str | None:
        if self._peek() in _QUOTES:
            text = self._text()
            return text if isinstance(text, str) else None
        word = _WORD.match(self.text, self.at)
        if word is None:
            raise _NoJson
        self.at = word.end()
        if self.at == len(self.text):
            return None
        self.repairs["quoted names"] = None
        return word[0]

    def _text(self) -> Any:
        """Return the text in quotes; one in single quotes ends where a value can end, so that it may hold an ’s."""
        quote = self.text[self.at]
        close, begin = _QUOTES[quote], self.at + 1
        at = begin
        while at < len(self.text) and not (self.text[at] == close and self._can_end(quote, at)):
            at += 2 if self.text[at] == "\\" else 1
        if at >= len(self.text):
            return _MISSING
        self.at = at + 1
        if quote != '"':
            self.repairs["replaced single quotes" if quote == "'" else "replaced typographic quotes"] = None
        return self._unescaped(self.text[begin:at], quote)

    def _can_end(self, quote: str, at: int) -> bool:
        if quote == '"':
            return True
        space = _SPACE.match(self.text, at + 1)
        after = space.end() if space else at + 1
        return after >= len(self.text) or self.text[after] in ",:}]"

    def _unescaped(self, inner: str, quote: str) -> str:
        if quote != '"':
            inner = inner.replace(f"\\{quote}", quote).replace('"', '\\"').replace('\\\\"', '\\"')
        try:
            found: str = json.loads(f'"{inner}"', strict=False)
            found.encode()
        except ValueError:  # a wrong escape, or half a character
            self.repairs["kept wrong escapes"] = None
            return inner
        return found

    def _bare(self, path: Path) -> Any:
        """Return a number, a truth value or null."""
        if _CUT_NUMBER.match(self.text, self.at) and (self._is_cut or path):
            self.at = len(self.text)
            return _MISSING
        number = _NUMBER.match(self.text, self.at)
        if number is not None:
            self.at = number.end()
            return self._number(number[0])
        word = _WORD.match(self.text, self.at)
        if word is None:
            raise _NoJson
        self.at = word.end()
        if word[0] not in _LITERALS:
            if self.at == len(self.text):
                return _MISSING
            raise _NoJson
        if word[0][0].isupper():
            self.repairs["replaced Python's literals"] = None
        return _LITERALS[word[0]]

    def _number(self, digits: str) -> int | float:
        try:
            found: int | float = json.loads(digits)
        except ValueError:  # +1, .5, 1., 007, or more digits than Python reads
            self.repairs["rewrote a number"] = None
            return float(digits)
        return found

    def _peek(self) -> str:
        """Return the next character that is no white space; empty at the end."""
        if (space := _SPACE.match(self.text, self.at)) is not None:
            self.at = space.end()
        return self.text[self.at : self.at + 1]

    def _expect(self, mark: str) -> None:
        if self._peek() != mark:
            raise _NoJson
        self.at += 1

    def _ended(self, path: Path) -> object:
        self.cut = path if self.cut is None else self.cut
        return _MISSING
