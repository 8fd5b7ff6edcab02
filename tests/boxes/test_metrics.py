"""Boxes are judged as COCO judges them, whatever the order of rows."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit import ConfigError
from qwenvl_kit.boxes import box_metrics, inside, iou
from qwenvl_kit.boxes.average_precision import average_precision, average_precisions
from qwenvl_kit.boxes.matching import match

SIDES = st.integers(0, 40)
CORNERS = st.tuples(SIDES, SIDES, SIDES, SIDES)
BOXES = st.lists(
    CORNERS.map(lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))), min_size=1, max_size=8
)
FLOATS, LENGTHS = st.floats(-1e4, 1e4), st.floats(0, 1e4)
BOX = st.tuples(FLOATS, FLOATS, LENGTHS, LENGTHS).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


def boxes(rows: list[tuple[object, str, float, float, float, float, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["row", "label", "x0", "y0", "x1", "y1", "score"])


@given(one=BOX, other=BOX)
def test_overlap_is_symmetric_and_between_0_and_1(one: tuple[float, ...], other: tuple[float, ...]) -> None:
    found = iou([one], [other])[0, 0]

    assert found == iou([other], [one])[0, 0]
    assert 0 <= found <= 1


@given(box=BOX)
def test_a_box_with_an_area_overlaps_itself_wholly(box: tuple[float, float, float, float]) -> None:
    has_area = (box[2] - box[0]) * (box[3] - box[1]) > 0

    assert iou([box], [box])[0, 0] == has_area


@given(ones=BOXES, others=BOXES, shift=st.integers(-50, 50), scale=st.sampled_from([0.25, 2, 3, 10]))
def test_overlap_does_not_change_when_both_boxes_move_or_grow(
    ones: list[tuple[int, ...]], others: list[tuple[int, ...]], shift: int, scale: float
) -> None:
    moved = iou((np.array(ones) + shift) * scale, (np.array(others) + shift) * scale)

    assert moved == pytest.approx(iou(ones, others), abs=1e-12)


@given(ones=BOXES, others=BOXES)
def test_overlap_is_that_of_counted_pixels(ones: list[tuple[int, ...]], others: list[tuple[int, ...]]) -> None:
    def covered(box: tuple[int, ...]) -> set[tuple[int, int]]:
        return set(itertools.product(range(box[0], box[2]), range(box[1], box[3])))

    for (n, one), (m, other) in itertools.product(enumerate(ones), enumerate(others)):
        union = covered(one) | covered(other)
        expected = len(covered(one) & covered(other)) / len(union) if union else 0.0
        assert iou(ones, others)[n, m] == pytest.approx(expected)


@given(ones=BOXES, scores=st.lists(st.sampled_from([0.1, 0.5, 0.9, np.nan]), min_size=8, max_size=8), others=BOXES)
def test_a_true_object_is_matched_once_and_by_no_weaker_object_than_a_free_better_one(
    ones: list[tuple[int, ...]], scores: list[float], others: list[tuple[int, ...]]
) -> None:
    overlap, rank = iou(ones, others), np.nan_to_num(scores[: len(ones)], nan=-1.0)
    partners, overlaps = match(overlap, np.array(scores[: len(ones)]), 0.3)
    taken = partners[partners >= 0]

    assert len(set(taken)) == len(taken)
    assert (overlaps[partners >= 0] >= 0.3).all()
    for n, m in itertools.product(range(len(ones)), range(len(others))):
        prefers = overlap[n, m] >= 0.3 and overlap[n, m] > overlaps[n]
        holders = np.flatnonzero(partners == m)
        assert not prefers or (len(holders) and (rank[holders[0]], -holders[0]) > (rank[n], -n))


def brute_average_precision(right: list[bool], scores: list[float], n_true: int) -> float:
    """Read precision at 101 recalls off the objects above each score, one by one."""
    ranks = [-1.0 if np.isnan(score) else score for score in scores]
    operating = []
    for least in sorted(set(ranks)):
        kept = [hit for hit, rank in zip(right, ranks, strict=True) if rank >= least]
        operating.append((sum(kept) / n_true, sum(kept) / len(kept)))
    read = [max((p for r, p in operating if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]
    return sum(read) / 101


OBJECTS = st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.25, 0.5, 0.7, 0.9, np.nan])), max_size=12)


@given(objects=OBJECTS, n_missed=st.integers(0, 5), order=st.randoms(use_true_random=False))
def test_average_precision_is_that_of_a_sweep_over_thresholds_in_any_order(
    objects: list[tuple[bool, float]], n_missed: int, order: object
) -> None:
    n_true = sum(hit for hit, _ in objects) + n_missed
    order.shuffle(objects)  # type: ignore[attr-defined]
    right, scores = [hit for hit, _ in objects], [score for _, score in objects]
    found = average_precision(right, scores, n_true)

    if n_true:
        assert found == pytest.approx(brute_average_precision(right, scores, n_true))
    else:
        assert np.isnan(found)


@given(objects=OBJECTS, counts=st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_a_weight_counts_an_object_so_often(objects: list[tuple[bool, float]], counts: list[int]) -> None:
    weights = counts[: len(objects)]
    repeated = [one for one, n in zip(objects, weights, strict=True) for _ in range(n)]
    n_true = 1 + sum(hit for hit, _ in repeated)
    expected = average_precision([hit for hit, _ in repeated], [score for _, score in repeated], n_true)

    right, scores = [hit for hit, _ in objects], [score for _, score in objects]
    once = [1] * len(objects)
    found = average_precisions(right, scores, [n_true, 1 + sum(right)], [weights, once])
    assert found == pytest.approx([expected, average_precision(right, scores, 1 + sum(right))])


TRUTH = boxes(
    [
        ("a", "cat", 0, 0, 10, 10, np.nan),
        ("a", "cat", 20, 0, 30, 10, np.nan),
        ("b", "dog", 0, 0, 10, 10, np.nan),
    ]
)


def test_a_second_box_of_the_same_object_is_wrong_and_the_better_scored_one_is_right() -> None:
    found = boxes([("a", "cat", 0, 0, 10, 8, 0.4), ("a", "cat", 0, 0, 10, 10, 0.9)])
    judged = box_metrics(found, TRUTH)

    assert judged.overall.loc[0.5, ["n_truth", "n_found", "n_right"]].tolist() == [3, 2, 1]
    assert judged.overall.loc[0.5, ["precision", "recall", "f1"]].tolist() == pytest.approx([1 / 2, 1 / 3, 2 / 5])
    assert judged.overall.loc[0.5, "mean_iou"] == pytest.approx(1 / 3)
    assert judged.pairs[["found", "truth"]].to_numpy().tolist() == [[0, -1], [1, 0], [-1, 1], [-1, 2]]


def test_a_box_right_at_half_may_be_wrong_at_three_quarters() -> None:
    judged = box_metrics(boxes([("b", "dog", 0, 0, 10, 6, 0.9)]), TRUTH)

    assert judged.by_label.loc[("dog", 0.5), "f1"] == 1
    assert judged.by_label.loc[("dog", 0.75), "f1"] == 0
    assert judged.by_label.loc[("dog", 0.75), "mean_iou"] == pytest.approx(0.6)


def test_another_label_or_image_is_no_match_unless_labels_are_ignored() -> None:
    found = boxes([("a", "dog", 0, 0, 10, 10, 0.9), ("b", "cat", 0, 0, 10, 10, 0.9)])

    assert box_metrics(found, TRUTH).overall.loc[0.5, "n_right"] == 0
    assert box_metrics(found, TRUTH, match_labels=False).overall.loc[0.5, "n_right"] == 2


def test_overall_ap_is_the_mean_over_labels_that_the_truth_has() -> None:
    found = boxes([("a", "cat", 0, 0, 10, 10, 0.9), ("a", "bird", 0, 0, 10, 10, 0.9), ("b", "dog", 0, 0, 10, 10, 0.9)])
    judged = box_metrics(found, TRUTH)
    ap = judged.by_label["ap"].xs(0.5, level="iou")

    assert ap["dog"] == 1
    assert ap["cat"] == pytest.approx(51 / 101)
    assert np.isnan(ap["bird"])
    assert judged.overall.loc[0.5, "ap"] == pytest.approx((ap["dog"] + ap["cat"]) / 2)


def test_points_are_right_inside_the_smallest_free_box_of_their_label() -> None:
    truth = boxes([("a", "cat", 2, 2, 4, 4, np.nan), ("a", "cat", 0, 0, 10, 10, np.nan)])
    points = pd.DataFrame({"row": "a", "label": "cat", "x": [3.0, 3.0, 10.0], "y": [3.0, 3.0, 10.0]})
    judged = box_metrics(points, truth)

    assert judged.pairs["truth"].tolist() == [0, 1, -1]
    assert judged.overall.loc["inside", ["precision", "recall"]].tolist() == pytest.approx([2 / 3, 1])
    assert "mean_iou" not in judged.overall


def test_images_without_objects_count_where_the_frames_record_them() -> None:
    found, truth = boxes([("b", "dog", 0, 0, 10, 10, 0.9), ("c", "dog", 0, 0, 1, 1, 0.9)]), TRUTH.copy()
    truth.attrs["rows"] = {"row": ["a", "b"], "status": ["ok", "ok"]}
    found.attrs["rows"] = pd.DataFrame({"status": ["error", "ok", "ok"]}, index=["a", "b", "c"])
    judged = box_metrics(found, truth)

    assert (judged.n_images, judged.n_failed) == (2, 1)
    assert judged.overall.loc[0.5, ["n_truth", "n_found", "n_right"]].tolist() == [3, 1, 1]


def test_frames_without_any_object_have_rates_without_a_value() -> None:
    judged = box_metrics(TRUTH.head(0), TRUTH.head(0), level=0.9)

    assert judged.overall["n_truth"].tolist() == [0, 0]
    assert judged.overall[["precision", "recall", "f1", "ap", "mean_iou", "ap_low"]].isna().all(axis=None)
    assert box_metrics(TRUTH.head(0), TRUTH).overall.loc[0.5, "recall"] == 0


def test_intervals_hold_the_figure_and_are_a_point_where_all_images_agree() -> None:
    rng = np.random.default_rng(0)
    truth = boxes([(row, "cat", 0, 0, 10, 10, np.nan) for row in range(30)])
    found = truth.assign(score=rng.random(30), x1=rng.integers(2, 10, 30).astype(float))
    row = box_metrics(found, truth, level=0.95).overall.loc[0.5]

    for name in ("precision", "recall", "f1", "ap", "mean_iou"):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"], name
    same = box_metrics(truth.assign(score=1.0), truth, level=0.95).overall.loc[0.75]
    assert (same["f1_low"], same["f1_high"], same["ap_low"]) == (1, 1, 1)


def test_mistakes_in_a_frame_are_named() -> None:
    with pytest.raises(ConfigError, match="truth needs the columns row, label, and x0"):
        box_metrics(TRUTH, pd.DataFrame({"row": [1]}))
    with pytest.raises(ConfigError, match=r"Object 1 of found has the corners 9, 0, 1, 1. x0 must be at most x1"):
        box_metrics(boxes([("a", "cat", 0, 0, 1, 1, 1), ("a", "cat", 9, 0, 1, 1, 1)]), TRUTH)
    with pytest.raises(ConfigError, match=r"coordinates 0, nan, 1, 1. They must be finite"):
        box_metrics(boxes([("a", "cat", 0, np.nan, 1, 1, 1)]), TRUTH)
    with pytest.raises(ConfigError, match=r"'x1' of found has values that are no numbers"):
        box_metrics(TRUTH.assign(x1="wide"), TRUTH)
    with pytest.raises(ConfigError, match="truth has points"):
        box_metrics(TRUTH, pd.DataFrame({"row": [0], "label": "cat", "x": 1.0, "y": 1.0}))
    with pytest.raises(ConfigError, match="found is a list"):
        box_metrics([TRUTH], TRUTH)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="iou="):
        box_metrics(TRUTH, TRUTH, iou=(0.5, 50))
    with pytest.raises(ConfigError, match="level"):
        box_metrics(TRUTH, TRUTH, level=95)


def test_edges_belong_to_a_box() -> None:
    assert inside([[0, 0], [10, 10], [10.1, 5]], [[0, 0, 10, 10]])[:, 0].tolist() == [True, True, False]
