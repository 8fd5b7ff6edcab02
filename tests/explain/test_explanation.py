"""Maps, frames and views of explained answers, without a model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers.explained import GREY, explanation
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.attribution import AnswerMaps, WordMap
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.explain import Explanation, Explanations
from qwenvl_kit.explain.maps import MAX_TOKENS, area_under, edges, on_pixels, pooled
from qwenvl_kit.explain.pictures import Pictures
from qwenvl_kit.options import FetchOptions


def test_a_map_lies_on_the_pixels_of_the_original() -> None:
    star = explanation().map("star")
    assert star.shape == (56, 84)
    assert star[:28, 56:].min() == star.max() == 3
    assert star[28:].max() == star[:, :56].max() == 0


def test_words_are_found_by_place_and_by_text_and_others_are_named() -> None:
    one = explanation()
    assert one.words == ["A", "red", "star"]
    assert one.word(-1) is one.word("star")
    with pytest.raises(ConfigError, match=r"no word 'blue'\. Its words: A, red, star"):
        one.map("blue")
    with pytest.raises(ConfigError, match="no word 3"):
        one.map(3)
    with pytest.raises(ConfigError, match=r"picture is 1, and the row has 1"):
        one.map(0, picture=1)


def test_layers_are_told_apart_only_where_they_were_kept() -> None:
    by_layer = explanation(layers=2)
    assert by_layer.grid("red", layer=1)[0, 1] == 2
    assert set(by_layer.frame()["layer"]) == {0, 1}
    assert "layer" not in explanation().frame()
    with pytest.raises(ConfigError, match=r"no map of layer 1.*layers='all'"):
        explanation().grid("red", layer=1)


def test_the_frame_has_a_row_for_each_word_and_cell_with_its_box_in_pixels() -> None:
    frame = explanation(n_pictures=2).frame()
    assert len(frame) == 3 * 2 * 6
    row = frame[(frame["word"] == "red") & (frame["weight"] > 0)].iloc[0]
    assert (row["row"], row["picture"], row["grid_row"], row["grid_column"]) == ("first", 0, 0, 1)
    assert row[["x0", "y0", "x1", "y1"]].tolist() == [28, 0, 56, 28]
    assert row["logprob"] == -0.5


def test_an_answer_of_no_words_has_an_empty_frame_and_a_view_that_says_so() -> None:
    one = explanation("?!")
    assert one.words == []
    assert one.frame().empty
    assert one.check().empty
    assert one.strongest() == []
    assert "the answer has no words" in one.show().html


def test_a_view_needs_no_script_escapes_the_answer_and_every_word_can_be_focused_and_heard() -> None:
    html = explanation(n_pictures=2).show().html
    assert "<script" not in html
    assert "&lt;" in html
    assert "<red>" not in html
    assert html.count('class="qwenvl-word" tabindex="0"') == 3
    assert 'aria-label="red: strongest at row 1 of 2, column 2 of 3 of image 1"' in html
    assert html.count("data:image/png") == (3 + 3) * 2, "a heat for each word and picture, and for the strongest ones"
    assert html.count("data:image/jpeg") == 2 + 3 * 2


def test_a_page_is_bounded_in_rows_and_bytes() -> None:
    one = explanation()
    results = pd.DataFrame({"status": ["ok", "ok"], "error": [None, None]}, index=["first", "second"])
    many = Explanations((one, one), results)
    assert many.show(n_rows=1).n_shown == 1
    assert "1 of 2 rows are shown" in many.show(n_rows=1).html
    assert many.show(max_bytes=10).n_shown == 0
    assert len(many.frame()) == 2 * len(one.frame())


def test_a_row_without_an_answer_is_named_with_its_error() -> None:
    results = pd.DataFrame({"status": ["ok", "error"], "error": [None, "too large"]}, index=["first", "second"])
    found = Explanations((explanation(),), results)
    assert found.of("first") is found[0]
    assert [one.row for one in found] == ["first"]
    with pytest.raises(ConfigError, match=r"'second' has no answer \(error\): too large"):
        found.of("second")
    with pytest.raises(ConfigError, match=r"There is no row 'third'"):
        found.of("third")


def test_areas_tell_a_good_map_from_random_orders() -> None:
    check = explanation().check()
    assert check["deletion"].tolist() == [0.25] * 3
    assert check["insertion"].tolist() == [0.75] * 3
    assert check["random_deletion"].tolist() == [0.5] * 3
    assert list(explanation().curves("red")) == [
        "share",
        "deletion",
        "insertion",
        "random_deletion",
        "random_insertion",
    ]


def test_maps_of_more_than_16384_tokens_are_averaged_and_it_is_said() -> None:
    grids = [(128, 128), (31, 1)]
    weights = np.arange(128 * 128 + 31, dtype=np.float32)[None]
    maps, side = pooled(weights, grids)
    assert side == 2
    assert [one.shape for one in maps] == [(1, 64, 64), (1, 16, 1)]
    assert maps[0][0, 0, 0] == weights[0, [0, 1, 128, 129]].mean()
    assert maps[1][0, -1, 0] == weights[0, -1], "the last cell holds one token"
    word = WordMap("x", 0, 1, 0.0, weights)
    large = Explanation(
        "r", "x", "attention", AnswerMaps((word,), tuple(grids), ((56, 84),) * 2), Pictures([GREY] * 2, FetchOptions())
    )
    assert large.pooled == 2
    assert "cells of 2 × 2 visual tokens" in large.show().html
    assert pooled(weights[:, :MAX_TOKENS], [(128, 128)])[1] == 1


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 300), st.integers(1, 300))
def test_every_pixel_has_the_weight_of_the_cell_whose_edges_hold_it(
    rows: int, columns: int, height: int, width: int
) -> None:
    grid = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    pixels = on_pixels(grid, (height, width))
    assert pixels.shape == (height, width)
    down, across = edges(rows, height), edges(columns, width)
    for y, x in ((0, 0), (height - 1, width - 1), (height // 2, width // 3)):
        row, column = divmod(int(pixels[y, x]), columns)
        assert down[row] - 1e-9 <= y + 0.5 <= down[row + 1] + 1e-9
        assert across[column] - 1e-9 <= x + 0.5 <= across[column + 1] + 1e-9


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_an_area_lies_between_the_lowest_and_the_highest_value(values: list[float]) -> None:
    shares = np.linspace(0, 1, len(values))
    assert min(values) - 1e-9 <= float(area_under(shares, np.array(values))) <= max(values) + 1e-9
