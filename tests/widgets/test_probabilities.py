"""Probabilities as HTML: shades and bars for eyes, tables and descriptions for screen readers, nothing unescaped."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.types import Result
from qwenvl_kit.widgets.probabilities import labels_html, tokens_html

EVIL = "<img src=x onerror='alert(1)'>"


def answer(tokens: list[str], shares: list[float], others: list[list[tuple[str, float]]] | None = None) -> Result:
    """Return an answer of these tokens with their probabilities, and the likeliest tokens in each place."""
    flat = [one for place in others or [] for one in place]
    return Result(
        0,
        "ok",
        text="".join(tokens),
        token_texts=tuple(tokens),
        token_logprobs=tuple(map(math.log, shares)),
        alternative_texts=tuple(text for text, _ in flat),
        alternative_logprobs=tuple(math.log(share) for _, share in flat),
    )


def page(result: Result) -> str:
    found = tokens_html(result)
    assert found is not None
    return str(found)


def text_of(html: str) -> str:
    """What a page without styles shows of the answer."""
    return re.sub("<[^>]*>", "", html[: html.index("</div>")])


def test_doubtful_tokens_are_shaded_more_and_tell_what_else_was_likely() -> None:
    others = [[("A", 0.999)], [(" red", 0.6), (" pink", 0.3)], [(" ring", 0.2)], [("", 1.0)]]
    html = page(answer(["A", " red", " heart", ""], [0.999, 0.6, 0.1, 1.0], [[*one, *one][:2] for one in others]))

    assert text_of(html) == "A red heart"
    shades = [float(one) for one in re.findall(r"rgba\(214, 120, 40, ([0-9.]+)\)", html)]
    assert shades == sorted(shades)
    assert len(shades) == 2, "tokens that are sure have no shade"
    assert "“ red” 60\N{NO-BREAK SPACE}%, “ pink” 30\N{NO-BREAK SPACE}%" in html
    assert html.count("underline dotted") == 1, "a sign beside the colour"


def test_what_is_shaded_has_a_description_takes_the_focus_and_stands_in_a_table() -> None:
    html = page(answer(["A", " red", ""], [0.5, 0.4, 0.9]))

    assert html.count("tabindex='0'") == html.count("aria-description=") == 3
    table = html[html.index("<table") :]
    assert [name in table for name in ("“A”", "“ red”", "end of the answer")] == [True] * 3
    assert "3 tokens, together 18" in html
    assert "least probable “ red”, 40" in html


def test_a_long_answer_has_few_stops_for_the_keyboard_and_is_bounded() -> None:
    html = page(answer([f" word{at}" for at in range(900)], [0.5 + at / 2000 for at in range(900)]))

    assert html.count("tabindex='0'") == 20
    assert "… and 500 more tokens" in html
    assert len(html) < 100_000


def test_parts_of_a_character_are_one_piece_with_the_product_of_their_probabilities() -> None:
    result = Result(
        0, "ok", text="鹰!", token_texts=("\ufffd", "\ufffd", "!"), token_logprobs=(math.log(0.5), math.log(0.5), 0.0)
    )

    html = page(result)
    assert text_of(html) == "鹰!"
    assert "“鹰”, 25" in html


@given(st.lists(st.tuples(st.text(max_size=4), st.floats(1e-6, 1.0)), min_size=1, max_size=8))
def test_every_answer_is_shown_whole(tokens: list[Any]) -> None:
    texts, shares = map(list, zip(*tokens, strict=True))
    html = page(answer(texts, shares))

    assert "<script" not in html
    assert html.count("<span") == html.count("</span>") <= len(texts)


def test_tokens_alternatives_and_labels_are_escaped() -> None:
    html = page(answer([EVIL], [0.5], [[(EVIL, 0.5)]])) + str(labels_html([EVIL, "b"], [-1.0, -2.0]))

    assert "<img" not in html
    assert "onerror='" not in html
    assert html.count("&lt;img src=x onerror=&#39;alert(1)&#39;&gt;") >= 4


def test_an_answer_without_log_probabilities_has_none() -> None:
    assert tokens_html(Result(0, "ok", text="A ring.")) is None
    assert tokens_html(Result(0, "error", error="no image")) is None


def test_labels_are_bars_as_long_as_their_shares_the_likeliest_first() -> None:
    html = str(labels_html(["No.", "Yes."], [math.log(0.1), math.log(0.3)]))

    assert html.index("Yes.") < html.index("No.")
    assert re.findall(r"width: ([0-9.]+)%;\s+min-width", html) == ["75.0", "25.0"]
    assert "75\N{NO-BREAK SPACE}%" in html
    assert html.count("aria-hidden") == 2, "the numbers say it to a screen reader"
    assert "3 less likely labels are not shown" in str(labels_html([f"{n}" for n in range(15)], [-1.0] * 15))


def test_nothing_short_of_one_is_a_hundred_percent() -> None:
    assert ">99.9\N{NO-BREAK SPACE}%" in str(labels_html(["a", "b"], [0.0, -20.0])).replace("&gt;", ">")


@pytest.mark.parametrize("share", [1.0, 0.999])
def test_a_sure_answer_needs_no_table(share: float) -> None:
    assert "<table" not in page(answer(["Yes", "."], [share, share]))
