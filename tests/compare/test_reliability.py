"""Probabilities are held against the truth: calibration errors, Brier scores, and the bins of a diagram."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_kit.compare.comparison import Comparison
from qwenvl_kit.compare.reliability import brier_score, calibration_error, calibration_interval, reliability_bins
from qwenvl_kit.errors import ConfigError

answers = st.lists(
    st.tuples(st.floats(0, 1), st.booleans(), st.integers(0, 5)), min_size=1, max_size=40
)  # probability, right, image


def test_calibration_error_is_the_gap_between_sure_and_right() -> None:
    assert calibration_error([0.9] * 10, [True] * 6 + [False] * 4) == pytest.approx(0.3)
    assert calibration_error([1.0, 0.51], [True, False]) == pytest.approx(0.51 / 2)
    assert math.isnan(calibration_error([], []))
    assert math.isnan(brier_score([math.nan], [True]))


@settings(deadline=None, max_examples=15)
@given(answers, st.integers(1, 20))
def test_the_error_is_that_of_the_bins_of_the_diagram(given_answers: list[Any], n_bins: int) -> None:
    sure, right, images = map(np.array, zip(*given_answers, strict=True))
    bins = reliability_bins(sure, right, images, n_bins=n_bins)

    gaps = (bins["confidence"] - bins["right"]).abs() * bins["n"] / len(sure)
    assert gaps.sum() == pytest.approx(calibration_error(sure, right, n_bins))
    assert bins["n"].sum() == len(sure)
    assert ((bins["low"] <= bins["confidence"] + 1e-9) & (bins["confidence"] <= bins["high"] + 1e-9)).all()
    assert bins["right"].between(bins["right_low"].min() - 1e-9, bins["right_high"].max() + 1e-9).all()


@given(answers)
def test_the_score_of_the_chosen_of_two_labels_is_that_of_either(given_answers: list[Any]) -> None:
    p_yes, is_yes, _ = map(np.array, zip(*given_answers, strict=True))
    says_yes = p_yes >= 0.5

    score = brier_score(np.where(says_yes, p_yes, 1 - p_yes), says_yes == is_yes)

    assert score == pytest.approx(float(((p_yes - is_yes) ** 2).mean()))


def test_repeats_of_an_image_are_drawn_together() -> None:
    draw = np.random.default_rng(0)
    sure, right = draw.uniform(0.5, 1, 40), draw.random(40) < 0.6
    alone = calibration_interval(sure, right, range(40))
    repeated = calibration_interval(np.tile(sure, 9), np.tile(right, 9), np.tile(np.arange(40), 9))

    assert repeated == pytest.approx(alone)  # nine answers about an image say no more than one
    assert alone[0] < calibration_error(sure, right) < alone[1]


def comparison(**columns: Any) -> Comparison:
    """Of two settings: the probabilities of the first are true, the second is always sure."""
    draw = np.random.default_rng(1)
    n = 200
    sure = draw.uniform(0.5, 1, n)
    right = draw.random(n) < sure
    frame = pd.DataFrame({"size": [28] * n + [56] * n, "repeat": 0, "row": [*range(n)] * 2, "status": "ok"})
    frame["right"] = pd.array([*right, *right], "boolean")
    frame["probability"] = pd.array([*sure, *[1.0] * n], "Float64")
    frame["brier"] = (frame["probability"] - frame["right"].astype("Float64")) ** 2
    costs = {"cached": False, "seconds": 1.0, "visual_tokens": 4, "new_tokens": 3, "peak_mib": 9.0}
    return Comparison(frame.assign(**costs, **columns), ("size",), {"size": 28}, True, {})


def test_a_summary_tells_probabilities_that_are_true_from_those_that_are_not() -> None:
    summary = comparison().summary(level=0.95)

    true, sure = summary.loc[28], summary.loc[56]
    assert sure["ece_low"] > true["ece_high"]
    assert sure["brier"] > true["brier"]
    assert sure["brier_p"] < 0.01
    assert sure["ece"] == pytest.approx(1 - sure["right"])
    assert "ece_p" not in summary
    assert summary.columns.get_loc("ece_low") == summary.columns.get_loc("ece") + 1
    assert r"brier\_p" in comparison().to_latex(level=0.95)


def test_answers_that_failed_are_in_no_bin() -> None:
    found = comparison()
    found.frame.loc[found.frame["row"] < 50, ["right", "probability", "brier"]] = pd.NA

    bins = found.reliability(n_bins=10)

    assert bins.groupby("size")["n"].sum().tolist() == [150, 150]
    assert bins.loc[bins["size"] == 56, ["low", "high", "confidence"]].to_numpy().tolist() == [[0.9, 1.0, 1.0]]
    assert found.summary()["ece"].notna().all()


def test_the_diagram_has_a_line_per_setting_and_the_counts() -> None:
    mpl.use("Agg")
    found = comparison()
    bins = found.reliability(n_bins=5)
    axes = found.plot_reliability(n_bins=5)

    drawn = [y for bar in axes.containers for y in bar.lines[0].get_ydata()]
    assert drawn == pytest.approx(bins["right"].tolist())
    assert [text.get_text() for text in axes.texts] == bins["n"].map(str).tolist()
    assert found.plot_reliability(annotate=False).texts[:] == []
    mpl.pyplot.close("all")


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        (["brier", "right"], r"no truth\. Pass truth="),
        (["brier", "probability"], r"no probabilities\. Pass labels=.* logprobs=0"),
    ],
)
def test_what_a_diagram_lacks_is_named(dropped: list[str], message: str) -> None:
    found = comparison()
    lacking = Comparison(found.frame.drop(columns=dropped), found.varied, found.reference, True, {})

    with pytest.raises(ConfigError, match=message):
        lacking.reliability()
    assert "ece" not in lacking.summary()


@pytest.mark.parametrize("n_bins", [0, True, 2.5, 10**6])
def test_a_number_of_bins_is_one(n_bins: Any) -> None:
    with pytest.raises(ConfigError, match=r"n_bins=.* is invalid. It must be an integer from 1 to 1000"):
        comparison().reliability(n_bins)
