"""Boxes and points are judged by label and place, and nothing is dropped from the count."""

from __future__ import annotations

import pytest

from qwenvl_kit.demo.training.places import Item, Located, place_table, read_items, score_places

BOX = (10.0, 10.0, 30.0, 30.0)


def located(*given: Item, what: str = "detect", is_read: bool = True) -> Located:
    return Located(
        language="en",
        what="point" if what == "point" else "detect",
        asked="one",
        truth=(("star", BOX),),
        given=given if is_read else None,
    )


@pytest.mark.parametrize(
    "text",
    [
        '```json\n[\n\t{"bbox_2d": [1, 2, 3, 4], "label": "star"}\n]\n```',
        '[{"bbox_2d": [1, 2, 3, 4], "label": "star"}]',
    ],
)
def test_fenced_and_bare_arrays_are_read(text: str) -> None:
    assert read_items(text, "detect") == (("star", (1, 2, 3, 4)),)


@pytest.mark.parametrize(
    "text", [None, "", "no", '[{"bbox_2d": [1, 2, 3], "label": "star"}]', '[{"label": "star"}]', "[1]"]
)
def test_what_is_no_array_of_boxes_is_unread(text: str | None) -> None:
    assert read_items(text, "detect") is None


def test_an_empty_array_is_read() -> None:
    assert read_items("```json\n[]\n```", "detect") == ()


def test_a_box_counts_by_label_and_iou_and_only_once() -> None:
    (score,) = score_places([located(("star", BOX), ("star", BOX)), located(("ring", BOX)), located(is_read=False)])
    assert (score.n_true, score.n_given, score.n_right, score.n_unread) == (3, 3, 1, 1)
    assert score.mean_iou == pytest.approx(1 / 3)
    assert score.f1 == pytest.approx(1 / 3)


def test_a_point_counts_inside_the_box() -> None:
    (score,) = score_places([located(("star", (11, 29)), what="point"), located(("star", (9, 20)), what="point")])
    assert (score.n_right, score.found, score.mean_iou) == (1, 0.5, None)
    assert place_table([score]).splitlines()[-1].startswith("| en | point | one | 2 | 2 | 1 | 0.500 | 0.500 |  | 0 |")
