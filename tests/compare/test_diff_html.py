"""Differences are told by signs, and the marked text is still the text."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.compare.diff_html import diff_html


def plain(marked: str) -> str:
    """What a reader of the page reads."""
    return html.unescape(re.sub(r"</?(?:ins|del)>", "", marked))


texts = st.text(st.sampled_from("红蓝色的ab c.<&"), max_size=30)


@given(texts, texts)
def test_without_what_was_left_out_the_marked_text_is_the_answer(said: str, wanted: str) -> None:
    marked = diff_html(said, wanted)
    kept = re.sub(r"<del>\[−.*?\]</del>", "", marked)
    kept = re.sub(r"<ins>\[\+(.*?)\]</ins>", r"\1", kept)

    assert "".join(plain(kept).split()) == "".join(said.split())


@pytest.mark.parametrize(
    ("said", "wanted", "marked"),
    [
        ("一个小的红色圆形。", "一个大的红色圆形。", "一个[−大][+小]的红色圆形。"),
        ("two red rings.", "two rings.", "two [+red] rings."),
        ("<b> bold", "<i> bold", "<[−i][+b]> bold"),
        ("entirely other", "words stand here", "entirely other"),
    ],
)
def test_signs_tell_what_was_added_and_what_left_out(said: str, wanted: str, marked: str) -> None:
    assert plain(diff_html(said, wanted)) == marked


def test_markup_in_the_texts_is_escaped() -> None:
    assert "<script" not in diff_html("a <script> b", "a b")


@pytest.mark.parametrize("text", ["的" * 1000, "的一" * 500, "的一是" * 300])
def test_made_up_texts_that_would_take_long_to_compare_are_given_without_marks(text: str) -> None:
    assert diff_html(text, text[1:] + "了") == text
