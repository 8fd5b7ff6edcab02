"""Read boxes and points out of a model's text, however it is written; what cannot be read is kept as text.

Each object is read by itself, so that a fault in one costs no other. The time is linear in the text's length.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwenvl_kit.tasks.boxes import Coordinates
from qwenvl_kit.tasks.lenient_json import Path, parse_json
from qwenvl_kit.tasks.token_spans import Span

Kind = Literal["box", "point"]

_KEYS: dict[Kind, tuple[str, ...]] = {"box": ("bbox_2d", "bbox", "box", "bounding_box"), "point": ("point_2d", "point")}
_N_NUMBERS: dict[Kind, int] = {"box": 4, "point": 2}
_LABELS = ("label", "name", "class", "category")
# Objects that only hold another, however many; or the innermost object or list from a place on, without its end where
# another begins in it, or where the text ends.
_PIECE = re.compile(
    r"""(?P<nest>(?:\{\s*+["'“]?\w*+["'“”]?\s*+:\s*+(?=\{))++)|\{[^{}]*+\}?|\[(?!\s*+[\[{])[^\[\]{}]*+\]?"""
)
_OPENING = re.compile(r"""[{\[]\s*(?:(?:"[^"]*"|'[^']*'|\w+)\s*:\s*\[?\s*)?""")  # what only holds other pieces
_NAMED = {kind: re.compile(rf"[{{,]\s*[\"'“]?(?:{'|'.join(keys)})[\"'”]?\s*:") for kind, keys in _KEYS.items()}
_SEPARATOR = re.compile(r"[\s,;()\[\]]+")
_LONGEST = 2_000  # characters of an object with braces in its texts
_MAX_DEPTH = 3  # of lists around the numbers of a box


@dataclass(frozen=True, slots=True)
class ParsedObject:
    """A box or point of an answer.

    Attributes
    ----------
    coordinates : tuple of float
        Finite numbers as the answer has them: four of a box, two of a point.
    label : str or None
        None where the object has none.
    text : str
        The object's own piece of the answer; shared by the boxes of one piece.
    start : int
        Where the piece begins in the answer.
    path : tuple
        Place of the coordinates in the JSON of the piece.
    """

    coordinates: Coordinates
    label: str | None
    text: str
    start: int
    path: Path

    def spans(self) -> tuple[list[Span], list[Span]]:
        """Return where the numbers and the label stand in the answer."""
        parsed = parse_json(self.text)
        written = {} if parsed is None else parsed.spans
        numbers = [span for path, span in written.items() if path[: len(self.path)] == self.path]
        name = next((one for one in _LABELS if (one,) in written), None)
        label = [] if name is None or self.label is None else [_unquoted(self.text, written[(name,)])]
        return [self._moved(one) for one in numbers], [self._moved(one) for one in label]

    def _moved(self, span: Span) -> Span:
        return self.start + span[0], self.start + span[1]


@dataclass(frozen=True, slots=True)
class ParsedObjects:
    """What an answer holds.

    Attributes
    ----------
    objects : tuple of ParsedObject
        In the order of the answer, equal ones once.
    unread : tuple of str
        Pieces that are no such object; the whole answer where it holds no JSON.
    n_repeated : int
        Objects that are equal to an earlier one.
    """

    objects: tuple[ParsedObject, ...]
    unread: tuple[str, ...]
    n_repeated: int


def parse_objects(text: str, kind: Kind) -> ParsedObjects:
    r"""Read the objects of one kind out of a text.

    Parameters
    ----------
    text : str
        Any text. Objects may be fenced, single-quoted, cut, nested, repeated or between prose; keys may be ``bbox_2d``,
        ``bbox``, ``box`` and ``bounding_box``, or ``point_2d`` and ``point``; numbers may be texts.
    kind : {"box", "point"}
        What to read; objects of the other kind are unread.

    Examples
    --------
    >>> found = parse_objects('```json\n[{"bbox_2d": [1, 2, 30, 40], "label": "cat"}, {"bbox_2d": [5, 6', "box")
    >>> [(one.coordinates, one.label) for one in found.objects], found.unread
    ([((1.0, 2.0, 30.0, 40.0), 'cat')], ('{"bbox_2d": [5, 6',))
    >>> parse_objects("[]", "box")
    ParsedObjects(objects=(), unread=(), n_repeated=0)
    """
    objects: dict[tuple[Coordinates, str | None], ParsedObject] = {}
    unread: list[str] = []
    known: dict[str, list[_Read] | None] = {}  # a model in a loop writes one piece thousands of times
    n_read, is_empty, at = 0, False, 0
    while (found := _PIECE.search(text, at)) is not None:
        if found["nest"]:
            at = found.end()
            continue
        piece, start = _whole(text, found)
        at = start + len(piece)
        if piece[-1] not in "}]":
            if _OPENING.fullmatch(piece) is None:
                unread.append(piece.strip())
            continue
        if piece not in known:
            known[piece] = _read(piece, kind)
        read = known[piece]
        if read is None:
            unread.append(piece)
            continue
        is_empty = is_empty or not read
        n_read += len(read)
        for coordinates, label, path in read:
            objects.setdefault((coordinates, label), ParsedObject(coordinates, label, piece, start, path))
    if not (objects or unread or is_empty):
        unread.append(text.strip())
    return ParsedObjects(tuple(objects.values()), tuple(unread), n_read - len(objects))


_Read = tuple[Coordinates, str | None, Path]


def _whole(text: str, found: re.Match[str]) -> tuple[str, int]:
    """Return a piece and its place; one that ends within a text of its JSON goes on to the JSON's end."""
    piece, start = found[0], found.start()
    if piece[0] == "{" and ":" in piece and piece.count('"') % 2:
        try:
            _, length = _STRICT.raw_decode(text[start : start + _LONGEST])
        except (ValueError, RecursionError):
            return piece, start
        return text[start : start + length], start
    return piece, start


def _read(piece: str, kind: Kind) -> list[_Read] | None:
    """Return the objects of a piece; empty where it says that there are none, None where it cannot be read."""
    value = _value(piece, kind)
    if _says_none(value):
        return []
    if isinstance(value, list):
        places, label = _places(value, kind, ()), None
    elif isinstance(value, dict) and (key := next((one for one in _KEYS[kind] if one in value), None)) is not None:
        places, label = _places(value[key], kind, (key,)), _label(value)
    else:
        return None
    return None if places is None else [(coordinates, label, path) for coordinates, path in places]


def _value(piece: str, kind: Kind) -> Any:
    """Return the JSON of a piece; None where it is none, or has two places for one object."""
    try:
        return _STRICT.decode(piece)
    except _Twice:
        return None
    except (ValueError, RecursionError):
        parsed = parse_json(piece)
    if parsed is None or parsed.cut is not None or len(_NAMED[kind].findall(piece)) > 1:
        return None
    return parsed.value


class _Twice(Exception):
    """An object has a name twice."""


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Twice
    return found


_STRICT = json.JSONDecoder(object_pairs_hook=_unique)


def _says_none(value: Any) -> bool:
    """Whether a value is an empty list or object, or an object of empty lists."""
    if isinstance(value, dict):
        return all(one == [] for one in value.values())
    return isinstance(value, list) and not value


def _places(value: Any, kind: Kind, path: Path, depth: int = 0) -> list[tuple[Coordinates, Path]] | None:
    """Return the boxes or points of a value, each with its place; None where a part is none."""
    given = _SEPARATOR.split(value.strip(" ()[]")) if isinstance(value, str) else value
    if not isinstance(given, list) or not given or depth > _MAX_DEPTH:
        return None
    if isinstance(value, list) and any(isinstance(one, list) for one in given):
        if kind == "box" and (corners := _corners(given)) is not None:
            return [(corners, path)]
        inner = [_places(one, kind, (*path, at), depth + 1) for at, one in enumerate(given)]
        return None if None in inner else [place for some in inner if some is not None for place in some]
    numbers = _numbers(given)
    return None if numbers is None or len(numbers) != _N_NUMBERS[kind] else [(numbers, path)]


def _corners(given: list[Any]) -> Coordinates | None:
    """Return the box of two corners, ``[[x0, y0], [x1, y1]]``."""
    if len(given) != 2 or not all(isinstance(one, list) and len(one) == 2 for one in given):
        return None
    return _numbers([*given[0], *given[1]])


def _numbers(given: list[Any]) -> Coordinates | None:
    """Return finite numbers, which may be written as texts; None where one is none."""
    if any(isinstance(one, bool) or not isinstance(one, int | float | str) for one in given):
        return None
    try:
        numbers = tuple(float(one) for one in given)
    except (ValueError, OverflowError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _label(value: dict[str, Any]) -> str | None:
    label = next((value[one] for one in _LABELS if one in value), None)
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        return None
    return str(label).encode("utf-8", "backslashreplace").decode()


def _unquoted(text: str, span: Span) -> Span:
    is_quoted = text[span[0]] in "\"'“‘"
    return (span[0] + 1, span[1] - 1) if is_quoted else span
