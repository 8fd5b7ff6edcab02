"""Intervals and tests over images."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_kit.compare.comparison import Comparison
from qwenvl_kit.compare.statistics import bootstrap_interval, paired_p_value
from qwenvl_kit.errors import ConfigError


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0]), min_size=1, max_size=9))
def test_a_paired_test_counts_all_sign_patterns(differences: list[float]) -> None:
    signs = itertools.product([-1, 1], repeat=len(differences))
    sums = [abs(sum(sign * one for sign, one in zip(some, differences, strict=True))) for some in signs]
    wanted = sum(one >= abs(sum(differences)) - 1e-9 for one in sums) / len(sums)

    assert paired_p_value(differences) == pytest.approx(wanted)


def test_many_differences_are_sampled_to_nearly_the_same_p_value() -> None:
    draw = np.random.default_rng(1)
    noise = draw.normal(size=40)
    assert paired_p_value(noise) > 0.05
    assert paired_p_value(noise + 1) < 0.001
    assert paired_p_value([1.0] * 6 + [0.0] * 500) == 2 / 2**6  # equal pairs say nothing


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    draw = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(draw.random(60) < 0.7, 0.9)
        covered += low <= 0.7 <= high
    assert 0.84 <= covered / 200 <= 0.96
    assert bootstrap_interval([1.0, math.nan, 0.0]) == bootstrap_interval([1.0, 0.0])
    assert all(map(math.isnan, bootstrap_interval([])))


def comparison(n_images: int = 30, repeats: int = 2) -> Comparison:
    """Of three settings: the second is right twice as often as the first, the third as often."""
    rows = [
        {"size": size, "repeat": repeat, "row": row, "right": (row + repeat) % every == 0, "status": "ok"}
        for size, every in ((28, 2), (56, 1), (pd.NA, 2))
        for repeat in range(repeats)
        for row in range(n_images)
    ]
    frame = pd.DataFrame(rows).astype({"size": "Int64", "right": "boolean"})
    costs = {"cached": False, "seconds": 1.0, "visual_tokens": 4, "new_tokens": 3, "peak_mib": 9.0}
    frame = frame.assign(**costs, same=pd.array([True] * len(frame), "boolean"), chrf=100.0)
    return Comparison(frame, ("size",), {"size": 28}, True, {})


def test_a_summary_has_intervals_over_images_and_p_values_against_the_reference() -> None:
    summary = comparison().summary(level=0.95)

    assert summary["right"].tolist() == [0.5, 1.0, 0.5]
    assert (summary["right_low"] <= summary["right"]).all()
    assert (summary["right"] <= summary["right_high"]).all()
    assert summary["right_p"].iloc[0] == 1.0
    assert summary["right_p"].iloc[1] < 0.001
    assert summary["right_p"].iloc[2] == 1.0
    assert "same_p" not in summary
    assert "right_low" not in comparison().summary()
    table = comparison().to_latex(level=0.95)
    assert r"right\_p" in table
    assert "1 [1, 1]" in table
    assert r"\toprule" in table


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_share(level: float) -> None:
    with pytest.raises(ConfigError, match=r"level must be between 0 and 1; got .*Pass 0.95"):
        comparison().summary(level=level)
