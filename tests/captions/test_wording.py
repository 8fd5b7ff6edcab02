"""Required and forbidden words are found as a reader finds them, and asked for in the prompt's language."""

from __future__ import annotations

import pytest

from qwenvl_kit.captions.wording import Wording
from qwenvl_kit.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "text", "is_found"),
    [
        ("cat", "A CAT sits.", True),
        ("cat", "a category", False),
        ("cat", "concat", False),
        ("cat", "这是cat吗", True),
        ("red car", "the red car.", True),
        ("c++", "in c++ and", True),
        ("猫", "一只小猫坐着", True),
        ("straße", "In der STRASSE", True),
        ("ｃａｔ", "cat", True),
    ],
)
def test_a_word_is_found_whole_and_in_any_case(word: str, text: str, is_found: bool) -> None:
    assert (Wording.of(must=word).faults(text) == []) == is_found
    assert (Wording.of(must_not=word).faults(text) == []) != is_found


def test_every_fault_is_named() -> None:
    wording = Wording.of(["dog", "grass"], ["photo", "image"])

    assert wording.faults("A photo of grass") == ["lacks 'dog'", "contains 'photo'"]


def test_a_chinese_prompt_asks_again_in_chinese() -> None:
    wording = Wording.of("猫", ["图片", "照片"])

    assert wording.ask_again("请描述。") == "请描述。回答中必须出现：“猫”。回答中不得出现：“图片”、“照片”。"


def test_nothing_is_asked_for_that_is_not_wanted() -> None:
    assert Wording.of(must="dog").ask_again("Describe it.") == "Describe it. The answer must contain: 'dog'."


@pytest.mark.parametrize(
    ("must", "must_not", "told"),
    [("", (), "must has ''"), ((), ["a", 3], "must_not has 3"), (["red car"], ["car"], "Leave out one of them")],
)
def test_words_that_no_answer_satisfies_are_refused(must: object, must_not: object, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Wording.of(must, must_not)  # type: ignore[arg-type]
