"""Plots of comparisons say only what was measured: no line through names, no text over text, no negative cost."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib import pyplot

from qwenvl_kit.compare.comparison import Comparison


@pytest.fixture(autouse=True)
def no_window() -> Iterator[None]:
    mpl.use("Agg")
    yield
    pyplot.close("all")


def comparison(settings: dict[str, list[object]], right: list[float], cost: list[float]) -> Comparison:
    measured = {"right": right, "seconds": cost, "repeat": 0, "status": "ok", "cached": False}
    return Comparison(pd.DataFrame({**settings, **measured}), tuple(settings), {}, True, {})


def test_no_line_joins_names_or_switches() -> None:
    for values in (["bfloat16", "float16", "float32"], [True, False, True]):
        axes = comparison({"option": list(values)}, [0.5, 0.7, 0.9], [1, 2, 3]).plot()
        assert {line.get_linestyle() for line in axes.get_lines()} == {"None"}


def test_a_line_joins_sizes_in_their_order_unless_its_cost_goes_to_and_fro() -> None:
    sizes: dict[str, list[object]] = {"resized_height": [224, 112, 448]}
    (line,) = comparison(sizes, [0.7, 0.5, 0.9], [2, 1, 3]).plot().get_lines()
    assert (line.get_linestyle(), line.get_xdata().tolist()) == ("-", [1, 2, 3])

    (line,) = comparison(sizes, [0.7, 0.5, 0.9], [2, 3, 4]).plot().get_lines()
    assert line.get_linestyle() == "None"


def test_settings_at_one_spot_share_one_text() -> None:
    settings: dict[str, list[object]] = {"seed": [1, 1, 2, 2], "flag": [True, False, True, False]}
    axes = comparison(settings, [0.5, 0.5, 0.5, 0.9], [1, 1, 1, 3]).plot()

    assert sorted(text.get_text() for text in axes.texts) == ["False", "True, False"]


def test_no_cost_is_drawn_below_zero_and_no_bar_without_a_spread() -> None:
    axes = comparison({"dtype": ["float32", "float16"]}, [0.1, 0.9], [0.1, 8.0]).plot()

    assert axes.get_xlim()[0] >= 0
    assert axes.containers == []


def test_the_legend_stands_beside_the_points() -> None:
    settings: dict[str, list[object]] = {"dtype": ["float32", "float16"], "resized_height": [112, 112]}
    axes = comparison(settings, [0.1, 0.9], [0.1, 8.0]).plot()
    axes.figure.draw_without_rendering()

    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1


def test_sizes_say_their_unit() -> None:
    axes = comparison({"resized_height": [112, 224]}, [0.1, 0.9], [0.1, 8.0]).plot(cost="resized_height")

    assert axes.get_xlabel() == "resized_height, px"
