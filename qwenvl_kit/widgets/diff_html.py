"""Two texts in, one marked text out: what was added and what was left out, told by signs and not by colour alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

from qwenvl_kit.compare.metrics import tokens
from qwenvl_kit.html import escape

_LONGEST = 2_000
# SequenceMatcher goes over all pairs of equal pieces once a match: a made-up text of one character took it 7 s.
_MOST_PAIRS = 8_000
_LEAST_ALIKE = 0.4  # marks in a text that is another one altogether only hide it


def diff_html(said: str, wanted: str) -> str:
    """HTML of `said`, with ``[+…]`` around what `wanted` lacks and ``[−…]`` around what only `wanted` has.

    Texts that have little in common, or whose pieces repeat so often that comparing would take long, are given without
    marks.

    Examples
    --------
    >>> diff_html("a large red ring", "a large red heart")
    'a large red <del>[−heart]</del><ins>[+ring]</ins>'
    """
    if said == wanted or len(said) > _LONGEST or len(wanted) > _LONGEST:
        return escape(said)
    ours, theirs = _pieces(said), _pieces(wanted)
    if _n_pairs(ours, theirs) > _MOST_PAIRS:
        return escape(said)
    matched = SequenceMatcher(None, theirs, ours, autojunk=False)
    if matched.ratio() < _LEAST_ALIKE:
        return escape(said)
    parts: list[str] = []
    for kind, a, b, c, d in matched.get_opcodes():
        if kind == "equal":
            parts.append(escape("".join(ours[c:d])))
            continue
        if b > a:
            parts.append(_wrapped("del", "−", "".join(theirs[a:b])))
        if d > c:
            parts.append(_wrapped("ins", "+", "".join(ours[c:d])))
    return "".join(parts)


def _n_pairs(ours: Sequence[str], theirs: Sequence[str]) -> int:
    theirs_of = Counter(theirs)
    return sum(n * theirs_of[piece] for piece, n in Counter(ours).items())


def _pieces(text: str) -> list[str]:
    """Tokens with the white space that follows each, so that the pieces joined are the text."""
    found: list[str] = []
    at = 0
    for token in tokens(text):
        start = text.index(token, at)
        if found:
            found[-1] += text[at:start]
        at = start + len(token)
        found.append(text[start:at])
    return found


def _wrapped(tag: str, sign: str, text: str) -> str:
    inner = text.rstrip()
    space = text[len(inner) :]
    return f"<{tag}>[{sign}{escape(inner)}]</{tag}>{space}" if inner else space
