"""What is to be done, and what needs no doing."""

from __future__ import annotations

from typing import Any

import pytest
from faults import gray
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.runner.plan import make_plan

CELLS = st.sampled_from(["a.png", "b.png", None, 7, "https://example.org/c.png", ["a.png", "b.png"], ["a.png", None]])


@given(rows=st.lists(st.tuples(CELLS, st.sampled_from(["What?", "Where?", None, "\ud800"])), max_size=30))
def test_each_row_stands_in_a_plan_exactly_once(rows: list[tuple[Any, str | None]]) -> None:
    plan = make_plan([cell for cell, _ in rows], [prompt for _, prompt in rows], "auto")

    asked = [ask.row for group in plan.groups for ask in group.asks]
    assert sorted(asked + [result.row for result in plan.settled]) == list(range(len(rows)))


def test_rows_with_the_same_pictures_share_a_group_in_order_of_appearance() -> None:
    cells = ["b.png", "a.png", "b.png", ["a.png", "b.png"], ["b.png", "a.png"], ["a.png", "b.png"]]

    plan = make_plan(cells, ["What?"] * 6, "auto")

    assert [[ask.row for ask in group.asks] for group in plan.groups] == [[0, 2], [1], [3, 5], [4]]


def test_equal_arrays_are_one_picture_and_arrays_that_differ_in_shape_are_not() -> None:
    cells = [gray(1), gray(1), gray(1).reshape(28, 112, 3)]

    plan = make_plan(cells, ["What?"] * 3, "auto")

    assert [[ask.row for ask in group.asks] for group in plan.groups] == [[0, 1], [2]]


def test_a_draw_counts_only_rows_with_the_same_pictures_and_prompt() -> None:
    cells = ["a.png", "b.png", "a.png", "a.png", "b.png"]
    prompts = ["What?", "What?", "Where?", "What?", "What?"]

    asks = [ask for group in make_plan(cells, prompts, "auto").groups for ask in group.asks]

    assert {ask.row: ask.draw for ask in asks} == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1}


def test_a_missing_picture_is_null_even_without_a_prompt() -> None:
    settled = make_plan([None, "a.png"], [None, None], "auto").settled

    assert [result.status for result in settled] == ["null_image", "error"]


@pytest.mark.parametrize(
    ("cells", "uses"),
    [
        (["a.png", "b.png"], {}),
        (["a.png", "a.png"], {}),
        (["a.png", ["a.png", "b.png"], ["c.png", "b.png"]], {"a.png": 2, "b.png": 2}),
        ([["a.png", "a.png", "b.png"]], {"a.png": 2}),
    ],
    ids=["apart", "one group", "across groups", "within a cell"],
)
def test_a_plan_knows_how_often_a_picture_is_wanted(cells: list[Any], uses: dict[str, int]) -> None:
    assert make_plan(cells, ["What?"] * len(cells), "auto").shared_sources() == uses


def test_a_group_is_remote_as_soon_as_one_picture_of_it_is() -> None:
    plan = make_plan(["a.png", ["a.png", "https://example.org/b.png"], "s3://c/d.png"], ["What?"] * 3, "auto")

    assert [group.is_remote() for group in plan.groups] == [False, True, True]
