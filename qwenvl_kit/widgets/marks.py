"""Two texts in, one marked text out: what was added and what was left out, told by signs and not by colour alone."""

from __future__ import annotations

import html
from difflib import SequenceMatcher

from qwenvl_kit.compare.metrics import tokens

_LONGEST = 2_000
_LEAST_ALIKE = 0.4  # marks in a text that is another one altogether only hide it


def mark(said: str, wanted: str) -> str:
    """HTML of `said`, with ``[+…]`` around what `wanted` lacks and ``[−…]`` around what only `wanted` has.

    Texts that have little in common are given without marks.

    Examples
    --------
    >>> mark("a large red ring", "a large red heart")
    'a large red <del>[−heart]</del><ins>[+ring]</ins>'
    """
    if said == wanted or len(said) > _LONGEST or len(wanted) > _LONGEST:
        return html.escape(said)
    ours, theirs = _pieces(said), _pieces(wanted)
    matched = SequenceMatcher(None, theirs, ours, autojunk=False)
    if matched.ratio() < _LEAST_ALIKE:
        return html.escape(said)
    parts: list[str] = []
    for kind, a, b, c, d in matched.get_opcodes():
        if kind == "equal":
            parts.append(html.escape("".join(ours[c:d])))
            continue
        if b > a:
            parts.append(_wrapped("del", "−", "".join(theirs[a:b])))
        if d > c:
            parts.append(_wrapped("ins", "+", "".join(ours[c:d])))
    return "".join(parts)


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
    return f"<{tag}>[{sign}{html.escape(inner)}]</{tag}>{space}" if inner else space
