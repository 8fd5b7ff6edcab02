"""Two texts in, how alike they are out: exactly, in tokens, in characters.

It knows no models: a token here is a word, a number, a Chinese character or a mark, which is what people would count.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from qwenvl_kit.errors import MissingExtra

# Scripts without spaces are taken character by character (CJK, kana, their compatibility forms), others word by word.
_BY_CHARACTER = r"\u3040-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"(?=[{_BY_CHARACTER}])\w|[^\W{_BY_CHARACTER}]+|[^\w\s]")
_LONGEST = 4_000


def tokens(text: str) -> list[str]:
    """Cut a text into words, Chinese characters and marks.

    Examples
    --------
    >>> tokens("一个大的 red heart.")
    ['一', '个', '大', '的', 'red', 'heart', '.']
    """
    return _TOKEN.findall(text)


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Fewest tokens to insert, delete or replace (Levenshtein).

    Examples
    --------
    >>> edit_distance(tokens("a small red ring"), tokens("a large red heart"))
    2
    """
    if len(one) < len(other):
        one, other = other, one
    above = list(range(len(other) + 1))
    for row, token in enumerate(one, start=1):
        line = [row]
        for column, against in enumerate(other, start=1):
            replaced = above[column - 1] + (token != against)
            line.append(min(replaced, above[column] + 1, line[-1] + 1))
        above = line
    return above[-1]


@functools.lru_cache(maxsize=65_536)
def token_edits(said: str, wanted: str) -> int:
    """Edit distance in tokens of two texts; of very long ones the first 4,000 tokens count."""
    return 0 if said == wanted else edit_distance(tokens(said)[:_LONGEST], tokens(wanted)[:_LONGEST])


@functools.lru_cache(maxsize=65_536)
def chrf(said: str, wanted: str) -> float:
    """The chrF of an answer against one reference, 0 to 100, by sacrebleu with its own settings.

    Popović 2015, https://aclanthology.org/W15-3049; the signature is in the record of the comparison.
    """
    if said == wanted:
        return 100.0
    return float(_scorer().sentence_score(said, [wanted]).score)


def signature() -> str:
    """The signature by sacrebleu of the chrF that is computed.

    Raises
    ------
    MissingExtra
        sacrebleu is not installed.
    """
    scorer = _scorer()
    scorer.sentence_score("a", ["a"])  # the signature counts references, which it learns from the first use
    return str(scorer.get_signature())


@functools.cache
def _scorer():  # type: ignore[no-untyped-def]  # sacrebleu has no types
    try:
        from sacrebleu.metrics import CHRF
    except ImportError as error:
        raise MissingExtra("chrF in comparisons", "notebook") from error
    return CHRF()
