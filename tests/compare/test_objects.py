"""Settings compared by the boxes that they find: rates against true boxes, agreement with the reference setting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.fake_backends import gray

from qwenvl_kit import ConfigError, RowErrorWarning
from qwenvl_kit.boxes import box_metrics, from_coco, to_coco
from qwenvl_kit.boxes.compared import CellObjects, ComparedObjects
from qwenvl_kit.compare import Comparison

ECHO: dict[str, Any] = {"backend": "echo", "progress": False, "min_pixels": 784}
FULL, HALF = '{"bbox_2d": [0, 0, 28, 28], "label": "cat"}', '{"bbox_2d": [0, 0, 28, 14], "label": "cat"}'
TRUTH = pd.DataFrame(
    [("a", "cat", 0, 0, 28, 28), ("b", "cat", 0, 0, 28, 28), ("b", "dog", 0, 0, 9, 9), ("z", "cat", 0, 0, 5, 5)],
    columns=["row", "label", "x0", "y0", "x1", "y1"],
)


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"image": [gray(1), gray(2)]}, index=["a", "b"])


def compare(frame: pd.DataFrame, **more: Any) -> Comparison:
    return frame.vl.compare("image", **{"vary": {"prompt": [f"[{FULL}]", f"[{HALF}]"]}, "truth": TRUTH, **ECHO, **more})


def test_the_summary_has_the_rates_of_each_setting(frame: pd.DataFrame) -> None:
    summary = compare(frame, labels=["cat"]).summary()

    rates = summary[["precision_50", "recall_50", "f1_50", "ap_50", "f1_75", "mean_iou", "same_iou", "right"]]
    assert rates.to_numpy(float).tolist() == [[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0.5, 0.5, 1]]
    assert summary["same"].tolist() == [1, 0]


def test_figures_are_those_of_box_metrics_with_its_intervals(frame: pd.DataFrame) -> None:
    found = compare(frame)
    summary = found.summary(level=0.9)

    judged = box_metrics(found.boxes()["prompt=[" + FULL + "]"], TRUTH, level=0.9).overall
    for name in ("recall", "f1", "ap", "recall_low", "f1_high"):
        given = name.replace("_", "_50_") if "_" in name else f"{name}_50"
        assert summary[given].iloc[0] == judged[name].loc[0.5]
    assert summary["recall_50"].iloc[0] == pytest.approx(2 / 3)
    assert "same_low" in summary


def test_objects_of_labels_that_are_not_asked_for_are_no_missed_ones(frame: pd.DataFrame) -> None:
    assert compare(frame, labels=["cat"]).summary()["recall_50"].tolist() == [1, 1]
    by_row = compare(frame.assign(what=["cat", "dog"]), labels="what")
    assert by_row.frame["n_truth"].tolist() == [1, 1, 1, 1]
    assert by_row.frame["n_right"].tolist() == [1, 0, 1, 0]


def test_each_row_says_what_was_found_and_whether_all_of_it_is_right(frame: pd.DataFrame) -> None:
    found = compare(frame)

    assert found.frame["n_objects"].tolist() == [1, 1, 1, 1]
    assert found.frame["n_truth"].tolist() == [1, 2, 1, 2]
    assert found.frame["mean_iou"].tolist() == [1, 0.5, 0.5, 0.25]
    assert found.frame["right"].tolist() == [True, False, True, False]
    assert found.frame["truth"].tolist() == ["cat", "cat, dog"] * 2
    assert "✗" in found.show(only="wrong").html
    assert found.boxes(repeat=1) == {}


def test_a_row_that_fails_is_no_right_one_and_its_objects_are_missed(frame: pd.DataFrame) -> None:
    cells = pd.concat([frame, pd.DataFrame({"image": [None, b"broken"]}, index=["n", "z"])])
    with pytest.warns(RowErrorWarning):
        found = compare(cells, labels=["cat"])

    assert found.summary()["recall_50"].tolist() == [pytest.approx(2 / 3)] * 2
    assert found.frame["right"].isna().tolist() == [False, False, True, True] * 2
    assert found.frame["n_truth"].tolist()[:4] == [1, 1, pd.NA, 1]


def test_an_answer_without_boxes_is_an_error_of_its_row(frame: pd.DataFrame) -> None:
    with pytest.warns(RowErrorWarning, match="holds no boxes"):
        found = compare(frame, vary={"prompt": [f"[{FULL}]", "None here."]})

    assert found.summary()["errors"].tolist() == [0, 2]
    assert found.summary()["f1_50"].tolist()[1] == 0


def test_repeats_are_averaged(frame: pd.DataFrame) -> None:
    once, twice = compare(frame).summary(level=0.9), compare(frame, repeats=2).summary(level=0.9)

    assert twice["n"].tolist() == [4, 4]
    names = [name for name in once if name.startswith(("f1", "ap", "recall", "mean_iou"))]
    pd.testing.assert_frame_equal(once[names], twice[names])


def test_settings_are_compared_with_the_reference_without_a_truth(frame: pd.DataFrame) -> None:
    found = compare(frame, truth=None, task="detect")

    assert found.summary()["same_iou"].tolist() == [1, 0.5]
    assert not {"right", "f1_50", "ece"} & set(found.summary())
    with pytest.raises(ConfigError, match="has no truth"):
        found.reliability()


def test_points_are_judged_inside_the_boxes(frame: pd.DataFrame) -> None:
    inside, outside = (f'[{{"point_2d": [{x}, 14], "label": "cat"}}]' for x in (14, 28.5))
    found = compare(frame, vary={"prompt": [inside, outside]}, labels=["cat"], task="point")

    assert found.summary()["f1"].tolist() == [1, 0]
    assert "same_iou" not in found.summary()


def test_a_truth_of_a_file_is_compared_by_its_record(frame: pd.DataFrame) -> None:
    coco = to_coco(TRUTH[TRUTH["row"] == "a"])
    found = compare(frame, truth=from_coco(coco))

    assert found.summary()["precision_50"].tolist() == [1, 1]  # "b" is not of the data set
    assert found.frame["n_truth"].isna().tolist() == [False, True] * 2
    with pytest.raises(ConfigError, match="No row of truth belongs to this frame: 'a'"):
        compare(frame.reset_index(), truth=from_coco(coco))


def test_scores_are_calibrated_against_the_truth(frame: pd.DataFrame) -> None:
    found = compare(frame)
    assert "ece" not in found.summary()  # the backend gives no probabilities
    objects = found.objects
    assert objects is not None
    for cell in objects.cells:  # type: ignore[attr-defined]
        cell.frame["score"] = 0.75
    bins = found.reliability(4)

    assert bins[["n", "confidence", "right"]].to_numpy().tolist() == [[2, 0.75, 1], [2, 0.75, 1]]
    assert found.summary(level=0.9)[["ece", "ece_low", "ece_high"]].to_numpy().tolist() == [[0.25] * 3] * 2


def test_the_plot_and_the_table_take_the_overlap_of_each_image(frame: pd.DataFrame) -> None:
    found = compare(frame)

    assert found.plot("mean_iou", "new_tokens").get_ylabel() == "mean IoU with the true boxes of an image"
    assert "f1\\_50" in found.to_latex(level=0.9)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"task": "segment"}, "task must be 'detect', 'point' or None; got 'segment'"),
        ({"truth": ["a", "b"], "task": "detect"}, "truth is a list"),
        ({"truth": pd.DataFrame({"row": ["a"]})}, "truth needs the columns"),
        ({"labels": []}, "labels is empty"),
        ({"vary": {"image_mode": ["url"]}, "backend": "openai", "base_url": "http://h/v1"}, "leaves the sizes"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    frame: pd.DataFrame, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(frame, **more)


def test_images_need_labels_of_their_own(frame: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match="labels twice"):
        compare(frame.set_axis(["a", "a"]))


def test_nothing_found_where_nothing_is_to_be_found_is_right() -> None:
    nothing = TRUTH.head(0)
    nothing.attrs["rows"] = {"row": ["a"], "status": ["ok"], "n_objects": [0]}
    objects = ComparedObjects((CellObjects(0, 0, 0, "only", {}, nothing),), nothing)

    assert objects.marks()[["n_objects", "n_truth", "right"]].to_numpy().tolist() == [[0, 0, True]]
    assert np.isnan(objects.measures(None)["f1_50"].iloc[0])
