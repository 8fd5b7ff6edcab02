"""Boxes and points come back from every format that they were written to."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit import ConfigError, MissingExtra, QwenVLWarning
from qwenvl_kit.boxes import (
    from_coco,
    from_label_studio,
    from_supervision,
    from_yolo,
    pictures,
    to_coco,
    to_label_studio,
    to_supervision,
    to_yolo,
)

BOX = ["x0", "y0", "x1", "y1"]
SIZES = {"a b": (640, 480), "c": (31, 4000), "空": (56, 56)}
SHARE = st.floats(0, 1)


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """Boxes in three images, some of which have none."""
    rows = []
    for row in draw(st.lists(st.sampled_from(list(SIZES)), max_size=8)):
        width, height = SIZES[row]
        (x0, x1), (y0, y1) = (sorted((draw(SHARE), draw(SHARE))) for _ in range(2))
        label, score = draw(st.sampled_from(["cat", "红 球", "a,b"])), draw(st.sampled_from([np.nan, 0.0, 0.25, 1.0]))
        rows.append((row, label, x0 * width, y0 * height, x1 * width, y1 * height, score, width, height))
    frame = pd.DataFrame(rows, columns=["row", "label", *BOX, "score", "width", "height"])
    frame.attrs["rows"] = {
        "row": list(SIZES),
        "status": ["ok"] * 3,
        **{name: [size[at] for size in SIZES.values()] for at, name in enumerate(("width", "height"))},
    }
    return frame


def boxes() -> pd.DataFrame:
    frame = pd.DataFrame(
        {"row": [7, 7, 9], "label": ["cat", "dog", "cat"], "x0": [0.0, 5, 1], "y0": 0.5, "x1": [10.0, 6, 2], "y1": 20.0}
    )
    return frame.assign(score=[0.9, np.nan, 0.5], width=100, height=50)


def assert_same(found: pd.DataFrame, expected: pd.DataFrame, *, within: float = 1e-9) -> None:
    order = ["row", "label", *BOX]
    for one, other in zip(
        *(frame.sort_values("row", kind="stable").to_dict("records") for frame in (found, expected)), strict=True
    ):
        assert [one[name] for name in order[:2]] == [other[name] for name in order[:2]]
        assert [one[name] for name in BOX] == pytest.approx([other[name] for name in BOX], abs=within)
        assert one["score"] == pytest.approx(other["score"], nan_ok=True, abs=1e-6)
        assert (one["width"], one["height"]) == (other["width"], other["height"])


@given(frame=frames())
def test_coco_gives_back_every_box_and_every_image(frame: pd.DataFrame) -> None:
    found = from_coco(json.loads(json.dumps(to_coco(frame))))

    assert_same(found, frame)
    assert pictures(found).index.tolist() == list(SIZES)
    assert pictures(found)[["width", "height"]].to_numpy().tolist() == [list(size) for size in SIZES.values()]


@given(frame=frames())
def test_yolo_gives_back_every_box_within_its_six_digits(frame: pd.DataFrame) -> None:
    written = to_yolo(frame, scores=True)
    found = from_yolo(written.texts, written.labels, SIZES)

    assert set(written.texts) == set(SIZES)
    assert_same(found, frame, within=1e-6 * 4000)


@given(frame=frames())
def test_label_studio_gives_back_every_box(frame: pd.DataFrame) -> None:
    found = from_label_studio(json.loads(json.dumps(to_label_studio(frame))))

    assert_same(found, frame)
    assert pictures(found).index.tolist() == list(SIZES)


@pytest.mark.parametrize("fmt", ["coco", "label_studio"])
def test_points_come_back(fmt: str) -> None:
    points = pd.DataFrame({"row": ["a", "a"], "label": ["cat", "dog"], "x": [1.5, 99.0], "y": [2.0, 3.0]})
    points = points.assign(score=[0.5, np.nan], width=100, height=50)
    write, read = {"coco": (to_coco, from_coco), "label_studio": (to_label_studio, from_label_studio)}[fmt]
    found = read(write(points), kind="points")

    assert found[["row", "label"]].equals(points[["row", "label"]])
    assert found[["x", "y", "score"]].to_numpy() == pytest.approx(points[["x", "y", "score"]].to_numpy(), nan_ok=True)


def test_files_name_the_images_and_find_their_rows_again(tmp_path: Path) -> None:
    files = pd.Series({7: "/photos/a.jpg", 8: "/photos/b.jpg", 9: "/photos/c.jpg"})
    coco = to_coco(boxes(), files=files)
    assert [one["file_name"] for one in coco["images"]] == ["/photos/a.jpg", "/photos/c.jpg"]
    for image in coco["images"]:
        image["file_name"] = Path(image["file_name"]).name
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    assert from_coco(tmp_path / "coco.json", files=files)["row"].tolist() == [7, 7, 9]
    assert from_coco(str(tmp_path / "coco.json"), files=files.loc[[9]])["row"].tolist() == [9]

    folder = to_yolo(boxes(), files=files).write(tmp_path / "labels")
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "c.txt", "classes.txt"]
    sizes = pd.DataFrame({"width": 100, "height": 50}, index=files.index)
    found = from_yolo(folder, ["cat", "dog"], sizes, files=files)
    assert_same(found.assign(score=0), boxes().assign(score=0), within=1e-4)
    assert pictures(found)["n_objects"].to_dict() == {7: 2, 8: 0, 9: 1}

    tasks = to_label_studio(boxes(), files=files, names=("box", "photo"))
    assert tasks[0]["data"] == {"photo": "/photos/a.jpg"}
    assert_same(from_label_studio(tasks, files=files, image="photo"), boxes())


def test_the_documented_fields_of_each_format_are_written() -> None:
    coco = to_coco(boxes())
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert coco["annotations"][1] == {
        "id": 2,
        "image_id": 1,
        "category_id": 2,
        "bbox": [5.0, 0.5, 1.0, 19.5],
        "area": 19.5,
        "iscrowd": 0,
    }
    assert coco["annotations"][0]["score"] == 0.9
    assert coco["images"][0] == {"id": 1, "file_name": "7", "width": 100, "height": 50}
    assert to_yolo(boxes(), labels=["dog", "cat"]).texts["9"] == "1 0.015000 0.205000 0.010000 0.390000\n"
    region = to_label_studio(boxes())[0]["predictions"][0]["result"][0]
    assert (region["type"], region["original_width"], region["value"]["rectanglelabels"]) == (
        "rectanglelabels",
        100,
        ["cat"],
    )


def test_an_annotation_is_taken_before_a_prediction_and_the_ground_truth_first() -> None:
    task = to_label_studio(boxes().tail(1))[0]
    result = task["predictions"][0]["result"]
    moved = [{**result[0], "value": {**result[0]["value"], "x": 50.0}}]
    cancelled = {"was_cancelled": True, "result": []}

    task["annotations"] = [cancelled, {"result": moved}]
    assert from_label_studio([task])["x0"].tolist() == [50]
    task["annotations"] = [{"result": moved}, {"result": result, "ground_truth": True}]
    assert from_label_studio([task])["x0"].tolist() == [1]


def test_crowds_are_left_out_and_said() -> None:
    coco = to_coco(boxes())
    coco["annotations"][0]["iscrowd"] = 1
    with pytest.warns(QwenVLWarning, match="1 regions of crowds were left out"):
        assert len(from_coco(coco)) == 2


@dataclass
class Detections:
    """As of supervision 0.31: the fields that are read and written here."""

    xyxy: np.ndarray
    mask: Any = None
    confidence: np.ndarray | None = None
    class_id: np.ndarray | None = None
    tracker_id: Any = None
    data: dict[str, Any] = field(default_factory=dict)


def test_supervision_gets_and_gives_every_box(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("supervision")
    stand_in.Detections = Detections  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    frame = boxes()
    frame.attrs["rows"] = pd.DataFrame({"status": "ok"}, index=[7, 8, 9])
    given = to_supervision(frame)

    assert list(given) == [7, 8, 9]
    assert given[8].xyxy.shape == (0, 4)
    assert given[7].class_id.tolist() == [0, 1]
    sizes = pd.DataFrame({"width": 100, "height": 50}, index=[7, 8, 9])
    assert_same(from_supervision(given, sizes=sizes), frame)
    assert from_supervision(given, labels=["x", "y"])["label"].tolist() == ["x", "y", "x"]
    assert pictures(from_supervision(given)).index.tolist() == [7, 8, 9]
    with pytest.raises(ConfigError, match=r"row 1 have no names. Pass labels="):
        from_supervision({1: Detections(np.zeros((1, 4)))})
    with pytest.raises(ConfigError, match="labels has no 'dog'"):
        to_supervision(frame, labels=["cat"])


def test_without_supervision_the_install_command_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtra, match=r"pip install 'qwenvl_kit\[boxes\]'"):
        to_supervision(boxes())


CORNERS = {"original_width": 10, "original_height": 10, "type": "rectanglelabels"}
RECT = {"x": 0, "y": 0, "width": 1, "height": 1, "rectanglelabels": ["cat"]}


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: from_coco({}), r"COCO JSON has images=None. It must be of type list"),
        (lambda: from_coco(_coco(bbox=[1, 2])), r"Annotation 1 has bbox=\[1, 2\]. It must be 4 numbers"),
        (lambda: from_coco(_coco(category_id=5)), "category_id=5, which is not among the categories"),
        (lambda: from_coco(to_coco(boxes()), files={1: "z.jpg"}), "None of the 2 images is in files; the first is '7'"),
        (lambda: to_coco(boxes(), files={7: "a.jpg"}), "files has no name for the row 9"),
        (lambda: to_coco(boxes(), files={7: "a.jpg", 9: "a.jpg"}), "Rows 7 and 9 have one file name, 'a.jpg'"),
        (lambda: to_yolo(boxes(), files={7: "a.jpg", 9: "a.png"}), "Rows 7 and 9 have one name without suffix, 'a'"),
        (lambda: to_yolo(boxes(), labels=["cat"]), "labels has no 'dog'"),
        (lambda: to_yolo(boxes().assign(x1=101)), "A box of row 7 is partly out of its 100×50 image"),
        (lambda: to_yolo(boxes().drop(columns="width")), "found needs width and height"),
        (lambda: from_yolo({"a": "0 .1 .1 .1"}, ["cat"], {"a": (9, 9)}), r"Line 1 of a.txt has 4 numbers. A box has 5"),
        (lambda: from_yolo({"a": "\n\nzero"}, ["cat"], {"a": (9, 9)}), r"Line 3 of a.txt is no numbers: 'zero'"),
        (
            lambda: from_yolo({"a": "1 0 0 0 0"}, ["cat"], {"a": (9, 9)}),
            r"has the class 1, but labels has 1\. Pass a label for each class",
        ),
        (lambda: from_yolo({"a": "0 0 0 0 0"}, ["cat"], {"b": (9, 9)}), "sizes has none of the images"),
        (lambda: from_yolo("no/such/folder", ["cat"], {}), "no/such/folder is no folder"),
        (lambda: from_label_studio({"data": 1}), "is a list of tasks; got dict"),  # type: ignore[arg-type]
        (lambda: from_label_studio([{"data": {}}]), "The data of task 0 has image=None"),
        (lambda: from_label_studio(_task(rotation=30)), "A region of task 0 is rotated by 30 degrees"),
        (lambda: from_label_studio(_task(x="left")), "A region of task 0 has x='left'"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(read: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read()


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a\.json' is no JSON: Expecting property name"):
        from_coco(tmp_path / "a.json")


def _coco(**changes: object) -> dict[str, Any]:
    coco = to_coco(boxes())
    coco["annotations"][0] |= changes
    return coco


def _task(**changes: object) -> list[dict[str, Any]]:
    return [{"data": {"image": "a"}, "annotations": [{"result": [{**CORNERS, "value": {**RECT, **changes}}]}]}]
