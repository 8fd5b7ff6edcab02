"""Words of answers and the tokens that wrote them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.inference.words import split_words, words_of


def decode(ids: list[int]) -> str:
    """Decode bytes, as a byte-level tokenizer does."""
    return bytes(ids).decode("utf-8", errors="replace")


def test_a_chinese_character_of_several_tokens_is_one_word_of_all_of_them() -> None:
    words = words_of(list("红色 x".encode()), decode)
    assert [(word.text, word.tokens) for word in words] == [("红", (0, 1, 2)), ("色", (3, 4, 5)), ("x", (7,))]


def test_a_word_of_several_tokens_is_joined_and_punctuation_is_no_word() -> None:
    pieces = ["A", " re", "d", "-", "green", " st", "ar", ".", "\n"]
    words = words_of(range(len(pieces)), lambda ids: "".join(pieces[at] for at in ids))
    assert [(word.text, word.tokens) for word in words] == [
        ("A", (0,)),
        ("red-green", (1, 2, 3, 4)),
        ("star", (5, 6)),
    ]


def test_answers_without_words_have_none() -> None:
    assert words_of([], decode) == []
    assert words_of(list("… !?🦉".encode()), decode) == []


def test_an_answer_cut_within_a_character_keeps_its_words() -> None:
    cut = list("a 红".encode())[:-1]
    assert [word.text for word in words_of(cut, decode)] == ["a"]


@given(st.text(max_size=40))
def test_every_letter_and_digit_belongs_to_exactly_one_word_and_each_word_to_a_token(text: str) -> None:
    spans = split_words(text)
    covered = [at for begin, end in spans for at in range(begin, end)]
    assert len(covered) == len(set(covered))
    assert {at for at, character in enumerate(text) if character.isalnum()} <= set(covered)
    ids = list(text.encode("utf-8", errors="ignore"))
    words = words_of(ids, decode)
    whole = decode(ids)
    assert [whole[word.begin : word.end] for word in words] == [word.text for word in words]
    assert all(word.tokens for word in words)
    assert all(decode([ids[at] for at in range(word.tokens[-1] + 1)])[: word.end].endswith(word.text) for word in words)
