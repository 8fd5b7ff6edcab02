"""Split an answer into words, and find the tokens that wrote each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_PART = "\ufffd"  # what the end of a text decodes to while a character is incomplete
# Han, kana and bopomofo, which are written without spaces. A character is a word there.
_ALONE = "\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_ALONE += "\U00020000-\U000323af"
_WORD = re.compile(rf"[{_ALONE}]|\d+(?:[.,:]\d+)*|(?:(?![{_ALONE}])[^\W_])+(?:['’\-](?:(?![{_ALONE}])[^\W_])+)*")


@dataclass(frozen=True, slots=True)
class Word:
    """A word of an answer.

    Attributes
    ----------
    text : str
    begin, end : int
        Its characters in the answer.
    tokens : tuple of int
        Indices of the tokens that wrote it.
    """

    text: str
    begin: int
    end: int
    tokens: tuple[int, ...]


def split_words(text: str) -> list[tuple[int, int]]:
    """Return where the words of a text begin and end; Chinese and Japanese characters are words by themselves.

    Examples
    --------
    >>> text = "It's a red-green star, 图中有2.5个。"
    >>> [text[begin:end] for begin, end in split_words(text)]
    ["It's", 'a', 'red-green', 'star', '图', '中', '有', '2.5', '个']
    """
    return [found.span() for found in _WORD.finditer(text)]


def words_of(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[Word]:
    """Return the words of an answer with the tokens of each.

    Tokens are decoded together with all before them, so that a character of several tokens belongs to each of them.

    Parameters
    ----------
    ids : sequence of int
        The answer's tokens.
    decode : callable
        Token ids to text.

    Examples
    --------
    >>> pieces = ["A r", "ed", " st", "ar", "."]
    >>> words = words_of(range(5), lambda ids: "".join(pieces[at] for at in ids))
    >>> [(word.text, word.tokens) for word in words]
    [('A', (0,)), ('red', (0, 1)), ('star', (2, 3))]
    """
    text = decode(list(ids))
    spans = _spans(ids, decode)
    return [
        Word(text[begin:end], begin, end, tokens)
        for begin, end in split_words(text)
        if (tokens := tuple(at for at, span in enumerate(spans) if span[0] < end and span[1] > begin))
    ]


def _spans(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[tuple[int, int]]:
    """Return the characters that each token wrote; parts of a character share it."""
    spans: list[tuple[int, int]] = []
    begin, n_open = 0, 0
    for at in range(len(ids)):
        text = decode(list(ids[: at + 1]))
        n_open += 1
        if text.endswith(_PART) and at + 1 < len(ids):
            continue
        spans += [(begin, len(text))] * n_open
        begin, n_open = len(text), 0
    return spans
