"""Distances are distances, and chrF is sacrebleu's."""

from __future__ import annotations

import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF

from qwenvl_kit import MissingExtra
from qwenvl_kit.compare import metrics
from qwenvl_kit.compare.metrics import chrf, edit_distance, token_edits, tokens

words = st.lists(st.sampled_from("abc"), max_size=8)


@given(words, words, words)
def test_edit_distance_is_a_metric(one: list[str], other: list[str], third: list[str]) -> None:
    assert (edit_distance(one, other) == 0) == (one == other)
    assert edit_distance(one, other) == edit_distance(other, one)
    assert edit_distance(one, third) <= edit_distance(one, other) + edit_distance(other, third)
    assert abs(len(one) - len(other)) <= edit_distance(one, other) <= max(len(one), len(other))


@example("ㇰ㈠ㄅ㌔")
@given(st.text(max_size=40))
def test_cutting_loses_white_space_only(text: str) -> None:
    assert "".join("".join(tokens(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("said", "wanted", "edits"),
    [
        ("一个大的红色圆形。", "一个小的红色圆形。", 1),
        ("a large red ring", "a large red heart", 1),
        ("one ring", "", 2),
        ("𠮷野家", "吉野家", 1),
    ],
)
def test_a_changed_word_or_chinese_character_is_one_edit(said: str, wanted: str, edits: int) -> None:
    assert token_edits(said, wanted) == edits


def test_chrf_is_that_of_sacrebleu() -> None:
    said, wanted = "One object on a gray background.", "Two objects on a gray background."

    assert chrf(said, wanted) == CHRF().sentence_score(said, [wanted]).score
    assert chrf(wanted, wanted) == 100.0
    assert "nc:6" in metrics.signature()


def test_without_sacrebleu_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    metrics.chrf_scorer.cache_clear()

    with pytest.raises(MissingExtra, match=r"pip install 'qwenvl_kit\[notebook\]'"):
        metrics.signature()
