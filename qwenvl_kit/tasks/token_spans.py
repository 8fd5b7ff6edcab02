"""Find the characters of an answer that each of its tokens wrote."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter

Span = tuple[int, int]
_PART = "\ufffd"  # what a token decodes to by itself if it is a part of a character
_LONGEST_RUN = 8  # parts of characters between two whole tokens; a character has at most four


def token_spans(tokens: Sequence[str], text: str) -> list[Span] | None:
    """Return where each token stands in the text; None where the tokens do not make up the text.

    Tokens that are parts of characters share the span of what they write together.

    Parameters
    ----------
    tokens : sequence of str
        Each decoded by itself; control tokens are empty.
    text : str
        All of them decoded together.

    Examples
    --------
    >>> token_spans(['{"a', '": ', "12", "}", ""], '{"a": 12}')
    [(0, 3), (3, 6), (6, 8), (8, 9), (9, 9)]
    >>> token_spans(["\ufffd", "\ufffd", "!"], "鹰!")
    [(0, 1), (0, 1), (1, 2)]
    """
    spans: list[Span] = []
    at, n_parts = 0, 0
    for token in [*tokens, ""]:
        if _PART in token:
            n_parts += 1
            continue
        is_last = len(spans) + n_parts == len(tokens)
        begin = len(text) if is_last else text.find(token, at, at + _LONGEST_RUN + len(token)) if n_parts else at
        if begin < 0 or (n_parts and begin == at and token) or not text.startswith(token, begin):
            return None
        spans += [(at, begin)] * n_parts
        n_parts = 0
        if is_last:
            break
        at = begin + len(token)
        spans.append((begin, at))
    whole = spans[-1][1] if spans else 0
    return spans if whole == len(text) else None


def overlapping(spans: Sequence[Span], parts: Sequence[Span]) -> list[int]:
    """Return the indices of those of `token_spans` that share a character with one of `parts`, each once.

    Examples
    --------
    >>> overlapping([(0, 3), (3, 6), (6, 8)], [(5, 7)])
    [1, 2]
    """
    found: dict[int, None] = {}
    for begin, end in parts:
        first, last = bisect_right(spans, begin, key=itemgetter(1)), bisect_left(spans, end, key=itemgetter(0))
        found.update(dict.fromkeys(range(first, last)))
    return sorted(found)
