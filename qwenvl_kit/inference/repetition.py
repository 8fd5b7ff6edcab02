"""Detect answers that repeat a phrase to their end."""

from __future__ import annotations

from collections.abc import Sequence

_MIN_TOKENS = 32  # a shorter tail can be a list of like things
_MIN_TIMES = 4
_MAX_PHRASE_LEN = 64


def repeated_phrase(ids: Sequence[int]) -> int | None:
    """Return the length of the phrase that `ids` end with, at least four times and over at least 32 tokens.

    None if there is no such phrase.

    Examples
    --------
    >>> repeated_phrase([1, 2, 3, *[7, 8] * 20])
    2
    >>> repeated_phrase(list(range(100))) is None
    True
    """
    for length in range(1, min(_MAX_PHRASE_LEN, len(ids) // _MIN_TIMES) + 1):
        wanted = max(_MIN_TOKENS, _MIN_TIMES * length)
        if len(ids) < wanted:
            return None
        tail = ids[-wanted:]
        if tail[length:] == tail[:-length]:
            return length
    return None
