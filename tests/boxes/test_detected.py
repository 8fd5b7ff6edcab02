"""What ``df.vl.detect`` and ``df.vl.point`` give can be shown, cut out, exported and judged as it is."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from helpers.fake_backends import gray

from qwenvl_kit import RowErrorWarning
from qwenvl_kit.boxes import (
    box_metrics,
    from_coco,
    from_label_studio,
    from_yolo,
    pictures,
    to_coco,
    to_label_studio,
    to_yolo,
)

ANSWER = '[{"bbox_2d": [0, 0, 14, 28], "label": "cat"}, {"bbox_2d": [14, 0, 28, 28], "label": "dog"}]'
ECHO = {"backend": "echo", "progress": False, "min_pixels": 784}


@pytest.fixture
def df() -> pd.DataFrame:
    images = [gray(1), gray(2), None, b"broken", gray(3)]
    answers = [ANSWER, "[]", ANSWER, ANSWER, ANSWER]
    return pd.DataFrame({"image": images, "answer": answers}, index=list("abcde"))


@pytest.fixture
def found(df: pd.DataFrame) -> pd.DataFrame:
    with pytest.warns(RowErrorWarning):
        return df.vl.detect("image", prompts="answer", **ECHO)


def test_every_image_has_its_status_on_the_sheet(df: pd.DataFrame, found: pd.DataFrame) -> None:
    page = df.vl.show("image", boxes={"truth": found, "found": found.tail(1)}).html

    assert found["row"].tolist() == ["a", "a", "e", "e"]
    assert "mean IoU 0.50" in page
    assert page.count("missed: ") == 2
    assert "error: " in page
    assert "no image" in page


def test_every_format_gives_back_what_was_detected(found: pd.DataFrame) -> None:
    written = to_yolo(found)
    sizes = pictures(found)[["width", "height"]].dropna()
    for again in (
        from_coco(json.loads(json.dumps(to_coco(found)))),
        from_label_studio(json.loads(json.dumps(to_label_studio(found)))),
        from_yolo(written.texts, written.labels, sizes),
    ):
        assert again[["row", "label"]].to_dict("list") == found[["row", "label"]].to_dict("list")
        assert again[["x0", "y0", "x1", "y1"]].to_numpy() == pytest.approx(found[["x0", "y0", "x1", "y1"]].to_numpy())
        assert box_metrics(again, found).overall["f1"].tolist() == [1, 1]


def test_failed_images_count_against_what_was_found(found: pd.DataFrame) -> None:
    truth = found.copy()
    truth.loc[0, "row"] = "d"
    truth.attrs = {}
    judged = box_metrics(found, truth)

    assert (judged.n_images, judged.n_failed) == (5, 2)  # "b" too: echo adds text to its empty list
    assert judged.overall.loc[0.5, ["n_truth", "n_found", "n_right"]].tolist() == [4, 4, 3]


def test_frames_of_several_runs_can_be_put_together(found: pd.DataFrame) -> None:
    again = pd.concat([found, from_coco(to_coco(found))], ignore_index=True)

    assert len(again) == 2 * len(found)
    assert again.attrs == {}


def test_crops_of_what_was_detected_are_images_for_the_next_question(df: pd.DataFrame, found: pd.DataFrame) -> None:
    crops = df.vl.crop("image", found)

    assert [crop.size for crop in crops] == [
        (round(one.x1 - one.x0), round(one.y1 - one.y0)) for one in found.itertuples()
    ]


def test_points_are_judged_inside_the_boxes(df: pd.DataFrame, found: pd.DataFrame) -> None:
    answer = '[{"point_2d": [3, 3], "label": "cat"}, {"point_2d": [3, 3], "label": "dog"}]'
    points = df.loc[["a"]].vl.point("image", prompt=answer, **ECHO)

    assert box_metrics(points, found[found["row"] == "a"]).overall.loc["inside", "precision"] == 0.5
