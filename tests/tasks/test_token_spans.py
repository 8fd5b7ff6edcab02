"""Tokens are found in the text that they make up."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_kit.tasks.token_spans import overlapping, token_spans


@settings(deadline=None, max_examples=300)
@given(text=st.text(alphabet='ab{}": 鹰🦉é1', max_size=20), cuts=st.sets(st.integers(1, 60)), ends=st.booleans())
def test_any_split_of_the_bytes_is_found_again(text: str, cuts: set[int], ends: bool) -> None:
    data = text.encode()
    edges = [0, *sorted(one for one in cuts if one < len(data)), len(data)]
    pieces = [data[begin:end] for begin, end in itertools.pairwise(edges)]
    tokens = [*(piece.decode(errors="replace") for piece in pieces), *([""] if ends else [])]

    spans = token_spans(tokens, text)

    if spans is None:  # a piece ends one character and begins another: which of them is not known
        assert "\ufffd" in "".join(tokens)
        return
    assert len(spans) == len(tokens)
    covered = 0
    for token, (begin, end) in zip(tokens, spans, strict=True):
        assert begin <= end
        if "\ufffd" not in token:
            assert text[begin:end] == token
        covered = max(covered, end)
    assert covered == len(text)


def test_another_text_has_no_spans() -> None:
    assert token_spans(["a", "b"], "ac") is None
    assert token_spans(["a"], "ab") is None
    assert token_spans(["a", "b"], "a") is None
    assert token_spans([], "") == []


def test_only_tokens_that_share_a_character_overlap() -> None:
    assert overlapping([(0, 2), (2, 2), (2, 4)], [(2, 3)]) == [2]
