"""Check the words that a caption must and must not contain, and ask for them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from qwenvl_kit.errors import ConfigError

_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")


@dataclass(frozen=True, slots=True)
class Wording:
    """Words that each caption must and must not contain.

    Case is ignored. A word of letters that are written with spaces between words is found as a whole word only: "cat"
    is not in "category". Chinese and Japanese words are found anywhere.

    Attributes
    ----------
    must, must_not : tuple of str
        Words or phrases.

    Examples
    --------
    >>> wording = Wording.of(["cat"], "photo")
    >>> wording.faults("A photo of a category")
    ["lacks 'cat'", "contains 'photo'"]
    >>> wording.ask_again("Describe it.")
    "Describe it. The answer must contain: 'cat'. The answer must not contain: 'photo'."
    """

    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()

    @classmethod
    def of(cls, must: str | Sequence[str] = (), must_not: str | Sequence[str] = ()) -> Wording:
        """Check the words.

        Raises
        ------
        ConfigError
            One is no text or blank, or is required and forbidden.
        """
        wording = cls(_words("must", must), _words("must_not", must_not))
        for word in wording.must_not:
            if any(_finds(word, required) for required in wording.must):
                raise ConfigError(
                    f"must_not has {word!r}, which a word of must={list(wording.must)} contains. Leave out one of them."
                )
        return wording

    def faults(self, text: str) -> list[str]:
        """Return which required words a caption lacks, and which forbidden ones it contains."""
        lacking = [f"lacks {word!r}" for word in self.must if not _finds(word, text)]
        return [*lacking, *(f"contains {word!r}" for word in self.must_not if _finds(word, text))]

    def ask_again(self, prompt: str) -> str:
        """Return a prompt that asks for the words, in Chinese where it is Chinese."""
        is_chinese = _CJK.search(prompt) is not None
        asks = ("回答中必须出现：{}。", "回答中不得出现：{}。") if is_chinese else _ASKS
        quoted, comma = ("“{}”", "、") if is_chinese else ("'{}'", ", ")
        lists = [comma.join(map(quoted.format, words)) for words in (self.must, self.must_not)]
        added = [ask.format(listed) for ask, listed in zip(asks, lists, strict=True) if listed]
        return ("" if is_chinese else " ").join([prompt, *added])


_ASKS = ("The answer must contain: {}.", "The answer must not contain: {}.")


def _words(name: str, given: str | Sequence[str]) -> tuple[str, ...]:
    words = (given,) if isinstance(given, str) else tuple(given)
    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise ConfigError(f"{name} has {word!r} in place of a word. Pass texts that are not blank.")
    return tuple(word.strip() for word in words)


def _finds(word: str, text: str) -> bool:
    sought, within = (unicodedata.normalize("NFKC", one).casefold() for one in (word, text))
    if _CJK.search(sought):
        return sought in within
    return re.search(rf"(?<!\w){re.escape(sought)}(?!\w)", _spaced(within)) is not None


def _spaced(text: str) -> str:
    """Part Chinese and Japanese letters from others, since no spaces do."""
    return _CJK.sub(" ", text)
