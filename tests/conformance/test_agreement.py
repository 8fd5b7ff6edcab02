"""Answers agree up to ties and to the tolerance."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.conformance.agreement import compare, tally
from qwenvl_kit.conformance.pairs import divergence
from qwenvl_kit.types import Result

# "a b" and the end; in each place the two likeliest tokens
RIGHT = Result(
    0,
    "ok",
    text="a b",
    prompt_tokens=9,
    token_texts=("a", " b", ""),
    token_logprobs=(-0.1, -0.7, -0.2),
    alternative_texts=("a", "c", " b", " d", "", "!"),
    alternative_logprobs=(-0.1, -2.4, -0.7, -0.8, -0.2, -2.0),
)


def test_equal_answers_agree_and_their_difference_is_the_largest_one() -> None:
    found = compare(replace(RIGHT, token_logprobs=(-0.1, -0.75, -0.2)), RIGHT, 0.1)

    assert found.agrees
    assert found.logprob_difference == pytest.approx(0.05)


def test_log_probabilities_beyond_the_tolerance_differ_though_texts_are_equal() -> None:
    found = compare(replace(RIGHT, token_logprobs=(-0.1, -0.75, -0.2)), RIGHT, 1e-3)

    assert (found.agrees, found.same_text) == (False, True)


def test_a_text_may_part_at_a_tie_and_nowhere_else() -> None:
    tie = Result(0, "ok", text="a d e", token_logprobs=(-0.1, -0.8, -1.0))

    assert compare(tie, RIGHT, 0.06).agrees  # " d" is 0.1 nats less likely
    assert not compare(tie, RIGHT, 0.04).agrees
    assert not compare(replace(tie, text="c"), RIGHT, 0.5).agrees
    assert not compare(replace(tie, text="never seen"), RIGHT, 10.0).agrees


def test_an_answer_that_goes_on_parts_where_the_other_ends() -> None:
    assert not compare(Result(0, "ok", text="a b c"), RIGHT, 0.5).agrees
    assert compare(Result(0, "ok", text="a b!"), RIGHT, 1.0).agrees


def test_another_number_of_prompt_tokens_differs_where_both_are_known() -> None:
    assert not compare(replace(RIGHT, prompt_tokens=8), RIGHT, 1e-3).agrees
    assert compare(replace(RIGHT, prompt_tokens=None), RIGHT, 1e-3).agrees


def test_failed_rows_and_numbers_that_are_none_differ() -> None:
    assert not compare(Result(0, "error", error="overflow"), RIGHT, 1.0).agrees
    assert not compare(replace(RIGHT, token_logprobs=(-0.1, math.nan, -0.2)), RIGHT, 1e9).agrees


def test_a_tally_counts_what_differs() -> None:
    counted = tally([RIGHT, Result(0, "ok", text="z")], [RIGHT, RIGHT], 1e-3)

    assert (counted.n_differ, counted.logprob_difference) == (1, 0.0)


WEIGHTS = st.lists(st.floats(0.01, 1.0), min_size=3, max_size=6)


def logs(weights: list[float]) -> dict[str, float]:
    return {str(at): math.log(weight / sum(weights)) for at, weight in enumerate(weights)}


@given(WEIGHTS, WEIGHTS, st.integers(1, 6))
def test_the_divergence_of_known_tokens_is_a_lower_bound_and_never_negative(
    one: list[float], other: list[float], n: int
) -> None:
    n_all = min(len(one), len(other))
    p, q = logs(one[:n_all]), logs(other[:n_all])
    whole = sum(math.exp(p[token]) * (p[token] - q[token]) for token in p)

    cut = [{token: of[token] for token in list(of)[: min(n, n_all)]} for of in (p, q)]

    assert 0 <= divergence(*cut) <= whole + 1e-9
    assert divergence(p, q) == pytest.approx(whole, abs=1e-6)
    assert divergence(p, p) == 0.0
