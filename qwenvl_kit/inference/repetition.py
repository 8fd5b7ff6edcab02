"""Token ids in, the length of the phrase that they repeat to their end out: an answer that loops is no answer."""

from __future__ import annotations

from collections.abc import Sequence

_LEAST_TOKENS = 32  # a shorter tail can be a list of like things
_LEAST_TIMES = 4
_LONGEST_PHRASE = 64


def repeated_phrase(ids: Sequence[int]) -> int | None:
    """Length of the phrase that `ids` end with, said at least four times over at least 32 tokens; None without one.

    Examples
    --------
    >>> repeated_phrase([1, 2, 3, *[7, 8] * 20])
    2
    >>> repeated_phrase(list(range(100))) is None
    True
    """
    for length in range(1, min(_LONGEST_PHRASE, len(ids) // _LEAST_TIMES) + 1):
        wanted = max(_LEAST_TOKENS, _LEAST_TIMES * length)
        if len(ids) < wanted:
            return None
        tail = ids[-wanted:]
        if tail[length:] == tail[:-length]:
            return length
    return None
