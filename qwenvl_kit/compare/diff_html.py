"""Mark the differences of two texts in HTML, by signs as well as by colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from qwenvl_kit.compare.metrics import tokens
from qwenvl_kit.html import render

if TYPE_CHECKING:
    from markupsafe import Markup

_LONGEST = 2_000
# SequenceMatcher visits all pairs of equal pieces once a match: 7 s for a long text of one repeated character.
_MAX_PAIRS = 8_000
_MIN_RATIO = 0.4  # marks hide a text that is altogether different
_TEMPLATE = """{% for kind, text in parts %}{% if kind == "keep" %}{{ text }}{% elif kind == "del" -%}
<del>[−{{ text }}]</del>{% else %}<ins>[+{{ text }}]</ins>{% endif %}{% endfor %}"""


def diff_html(answer: str, reference: str) -> Markup:
    """Return HTML of `answer`, with ``[+…]`` around additions and ``[−…]`` around omissions.

    Dissimilar texts, and texts with so many repetitions that comparing takes long, are returned unmarked.

    Examples
    --------
    >>> print(diff_html("a large red ring", "a large red heart"))
    a large red <del>[−heart]</del><ins>[+ring]</ins>
    """
    return render(_TEMPLATE, parts=list(_diff(answer, reference)))


def _diff(answer: str, reference: str) -> Iterator[tuple[str, str]]:
    """Yield kind (``keep``, ``del`` or ``ins``) and text of each part."""
    if answer == reference or len(answer) > _LONGEST or len(reference) > _LONGEST:
        yield "keep", answer
        return
    ours, theirs = _pieces(answer), _pieces(reference)
    matched = SequenceMatcher(None, theirs, ours, autojunk=False)
    if _n_pairs(ours, theirs) > _MAX_PAIRS or matched.ratio() < _MIN_RATIO:
        yield "keep", answer
        return
    for kind, a, b, c, d in matched.get_opcodes():
        if kind == "equal":
            yield "keep", "".join(ours[c:d])
            continue
        for tag, text in (("del", "".join(theirs[a:b])), ("ins", "".join(ours[c:d]))):
            inner = text.rstrip()
            if inner:
                yield tag, inner
            yield "keep", text[len(inner) :]


def _n_pairs(ours: Sequence[str], theirs: Sequence[str]) -> int:
    theirs_of = Counter(theirs)
    return sum(n * theirs_of[piece] for piece, n in Counter(ours).items())


def _pieces(text: str) -> list[str]:
    """Return tokens with the white space after each; joined, they are the text."""
    found: list[str] = []
    at = 0
    for token in tokens(text):
        start = text.index(token, at)
        if found:
            found[-1] += text[at:start]
        at = start + len(token)
        found.append(text[start:at])
    return found
