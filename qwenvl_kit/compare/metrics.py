"""Measure the agreement of two texts, in tokens and in characters.

A token is a word, a number, a Chinese character or a punctuation mark, not a token of the model.
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
    """Split a text into words, Chinese characters and punctuation marks.

    Examples
    --------
    >>> tokens("一个大的 red heart.")
    ['一', '个', '大', '的', 'red', 'heart', '.']
    """
    return _TOKEN.findall(text)


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the Levenshtein distance: the fewest insertions, deletions and replacements.

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
def token_edits(answer: str, reference: str) -> int:
    """Return the edit distance of the first 4,000 tokens of two texts."""
    return 0 if answer == reference else edit_distance(tokens(answer)[:_LONGEST], tokens(reference)[:_LONGEST])


@functools.lru_cache(maxsize=65_536)
def chrf(answer: str, reference: str) -> float:
    """Return the chrF of an answer against one reference, 0 to 100, by sacrebleu with its default settings.

    Popović 2015, https://aclanthology.org/W15-3049; the signature is in the record of the comparison.
    """
    if answer == reference:
        return 100.0
    return float(chrf_scorer().sentence_score(answer, [reference]).score)


def signature() -> str:
    """Return sacrebleu's signature of the chrF.

    Raises
    ------
    MissingExtra
        sacrebleu is not installed.
    """
    scorer = chrf_scorer()
    scorer.sentence_score("a", ["a"])  # the signature counts references, which it learns from the first use
    return str(scorer.get_signature())


@functools.cache
def chrf_scorer():  # type: ignore[no-untyped-def]  # sacrebleu has no types
    """Return sacrebleu's chrF; raise MissingExtra without sacrebleu."""
    try:
        from sacrebleu.metrics import CHRF
    except ImportError as error:
        raise MissingExtra("chrF in comparisons", "notebook") from error
    return CHRF()
