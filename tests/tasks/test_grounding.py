"""Objects come back in pixels of the original, each with its row; a row without objects is told from a failed one."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.mapped_boxes import Case, encoded
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

import qwenvl_kit
from qwenvl_kit import Config, ConfigError, OptionWarning, RowErrors, RowErrorWarning
from qwenvl_kit.boxes import pictures
from qwenvl_kit.demo import draw, sample_scenes
from qwenvl_kit.inference.constraints import _grammar
from qwenvl_kit.pipeline import Run
from qwenvl_kit.results import result_frame
from qwenvl_kit.tasks.box_parser import Kind, parse_objects
from qwenvl_kit.tasks.box_scores import object_scores
from qwenvl_kit.tasks.boxes import Size
from qwenvl_kit.tasks.grounding import Grounding
from qwenvl_kit.tasks.grounding_prompts import object_constraint, object_labels, object_prompt
from qwenvl_kit.types import Result

ECHO: dict[str, Any] = {"backend": "echo", "progress": False}
DEMO: dict[str, Any] = {"model_name": "demo", "dtype": "float32", "progress": False}
CAT = '```json\n[\n\t{"bbox_2d": [322, 238, 700, 476], "label": "cat"}\n]\n```'
INPUT: dict[str, Any] = {"height": 476, "width": 644, "source_height": 480, "source_width": 640}
BLACK = np.zeros((480, 640, 3), np.uint8)
BYTES = LLTokenizer("byte")
COLUMNS = ["row", "label", "x0", "y0", "x1", "y1", "score", "text", "clipped", "width", "height"]


def ground(texts: list[str], labels: Any = None, kind: Any = "box", **columns: Any) -> pd.DataFrame:
    """Return the objects of answers to an image of 640×480."""
    given = {"status": "ok", "error": None, "finish_reason": "stop", **INPUT, **columns}
    results = pd.DataFrame({"text": texts, **given})
    results.attrs["effective"] = {"family": "qwen2_5_vl"}
    return Grounding.of(kind, labels, results.index, Config(**ECHO)).frame(results)


def test_each_object_is_a_row_in_pixels_of_the_original() -> None:
    text = '[{"bbox_2d": [322, 238, 644, 476], "label": "cat"}, {"bbox_2d": [161, 119, 0, 0], "label": "dog"}]'

    found = ground([text, "[]", text])

    assert found.columns.tolist() == COLUMNS
    assert found["row"].tolist() == [0, 0, 2, 2]
    assert found["label"].tolist() == ["cat", "dog"] * 2
    assert found[["x0", "y0", "x1", "y1"]].iloc[:2].to_numpy().tolist() == [[320, 240, 640, 480], [0, 0, 160, 120]]
    assert found["clipped"].tolist() == [False, True] * 2
    assert found["text"].iloc[0] == '{"bbox_2d": [322, 238, 644, 476], "label": "cat"}'
    assert found[["width", "height"]].iloc[0].tolist() == [640, 480]
    assert found["score"].isna().all()


def test_points_have_x_and_y() -> None:
    found = ground(['[{"point_2d": [322, 119], "label": "cat"}, {"point_2d": [645, 0], "label": "out"}]'], kind="point")

    assert found[["x", "y"]].to_numpy().tolist() == [[320.0, 120.0]]
    assert found.attrs["rows"]["unread"] == [['{"point_2d": [645, 0], "label": "out"}']]


def test_a_frame_without_objects_has_the_same_dtypes() -> None:
    full, empty = ground([CAT]), ground(["[]"])

    assert empty.empty
    assert empty.dtypes.drop("row").tolist() == full.dtypes.drop("row").tolist()


def test_an_object_without_label_has_the_only_one_that_was_asked_for() -> None:
    text = '[{"bbox_2d": [1, 2, 30, 40]}, {"bbox_2d": [5, 6, 70, 80], "label": "pet"}]'

    assert ground([text], ["cat"])["label"].tolist() == ["cat", "pet"]
    assert ground([text], ["cat", "dog"])["label"].tolist() == ["", "pet"]


def test_rows_say_what_was_read_and_what_was_not() -> None:
    cut = '[{"bbox_2d": [1, 2, 30, 40], "label": "a"}, {"bbox_2d": [1, 2, 30, 40], "label": "a"}, {"bbox_2d": [1,'

    rows = pictures(ground([cut, '[{"bbox_2d": [-9, -9, 0, 0]}, {"label": "b"}]']))

    assert rows["n_objects"].tolist() == [1, 0]
    assert rows["n_repeated"].tolist() == [1, 0]
    assert rows["n_unread"].tolist() == [1, 2]
    assert rows["unread"].tolist() == [['{"bbox_2d": [1,'], ['{"label": "b"}', '{"bbox_2d": [-9, -9, 0, 0]}']]
    assert rows["raw"].tolist()[0] == cut


def test_frames_can_be_joined_filtered_and_saved_with_their_rows(tmp_path: Path) -> None:
    found = ground([CAT, "[]"])
    found.to_parquet(tmp_path / "found.parquet")

    assert found[found["x0"] > 0].attrs["rows"] is found.attrs["rows"]
    assert len(pd.concat([found, ground([CAT])])) == 2
    assert found.merge(found, on="row").shape[0] == 1
    assert pd.read_parquet(tmp_path / "found.parquet").attrs["rows"] == found.attrs["rows"]


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_turned_file_has_its_boxes_upright(turn: int) -> None:
    case = Case((480, 640), (0.0, 0.0, 64.0, 48.0), turn, {}, "JPEG")
    frame = pd.DataFrame({"image": [encoded(case)]}, index=["a"])

    found = frame.vl.detect("image", prompts=[CAT], **ECHO)

    assert found[["row", "x0", "y0", "x1", "y1"]].to_numpy().tolist() == [["a", 320.0, 240.0, 640.0, 480.0]]
    assert found[["width", "height"]].to_numpy().tolist() == [[640, 480]]
    assert found["clipped"].tolist() == [True]


def test_null_failed_and_empty_rows_are_told_apart() -> None:
    frame = pd.DataFrame({"image": [BLACK, None, "missing.png", BLACK, [BLACK, BLACK]]}, index=list("abcde"))

    with pytest.warns(RowErrorWarning, match="3 of 5 rows failed"):
        found = frame.vl.detect("image", prompts=[CAT, CAT, CAT, "There are none.", CAT], **ECHO)

    rows = pictures(found)
    assert rows.index.tolist() == list("abcde")
    assert rows["status"].tolist() == ["ok", "null_image", "error", "error", "error"]
    assert rows["n_objects"].tolist() == [1, 0, 0, 0, 0]
    assert rows["error"]["d"].startswith("The answer holds no boxes: 'There are none.")
    assert rows["error"]["e"] == (
        "The row has 2 images, and coordinates are those of one. Pass one image per row, as df.explode(column) does."
    )
    assert rows.loc["a", ["width", "height"]].tolist() == [640, 480]
    assert found.attrs["rows"]["height"] == [480, None, None, 480, None]
    with pytest.raises(RowErrors):
        frame.vl.detect("image", prompts=["nothing"] * 5, on_error="raise", **ECHO)


def test_a_cut_answer_is_an_error_that_keeps_its_complete_boxes() -> None:
    frame = pd.DataFrame({"image": [BLACK]})

    with pytest.warns(RowErrorWarning, match="truncated: max_caption_length"):
        found = frame.vl.detect("image", prompts=[f"{CAT} and {CAT}"], max_caption_length=8, **ECHO)

    assert found["label"].tolist() == ["cat"]
    assert found.attrs["rows"]["status"] == ["error"]


def test_answers_and_sizes_come_back_from_the_store(tmp_path: Path) -> None:
    frame, store = pd.DataFrame({"image": [BLACK, BLACK[:400]]}), str(tmp_path / "s.db")

    first = frame.vl.detect("image", prompts=[CAT, CAT], store=store, **ECHO)
    again = frame.vl.detect("image", prompts=[CAT, CAT], store=store, **ECHO)

    pd.testing.assert_frame_equal(first, again)
    assert again.attrs["cached"] == 2
    assert again.attrs["rows"] == first.attrs["rows"]


def test_a_store_without_sizes_gives_an_error_and_no_wrong_box(tmp_path: Path) -> None:
    import sqlite3

    frame, store = pd.DataFrame({"image": [BLACK]}), str(tmp_path / "s.db")
    frame.vl.run("image", prompts=[CAT], max_caption_length=1024, store=store, **ECHO)
    with sqlite3.connect(store) as connection:
        (kept,) = connection.execute("SELECT result FROM results").fetchone()
        old = {name: value for name, value in json.loads(kept).items() if not name.startswith("source_")}
        connection.execute("UPDATE results SET result = ?", (json.dumps(old),))
    connection.close()

    with pytest.warns(RowErrorWarning, match="without the size of the original image"):
        found = frame.vl.detect("image", prompts=[CAT], store=store, **ECHO)

    assert found.empty
    assert found.attrs["cached"] == 1


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # of Daft's own
def test_workers_of_daft_give_the_same_objects() -> None:
    frame = pd.DataFrame({"image": [BLACK, None, BLACK[:400]]}, index=list("abc"))

    here = frame.vl.detect("image", prompts=[CAT] * 3, **ECHO)
    there = frame.vl.detect("image", prompts=[CAT] * 3, engine="daft", **ECHO)

    pd.testing.assert_frame_equal(here, there, check_flags=False)
    assert here.attrs["rows"] == there.attrs["rows"]


def test_what_ctrl_c_leaves_has_its_objects() -> None:
    answers = [Result(0, "ok", text=CAT, finish_reason="stop", **INPUT), Result(1, "cancelled")]
    run = Run(answers, {"asked": {}, "rows": {}}, interrupted=True)
    grounding = Grounding.of("box", None, pd.RangeIndex(2), Config(**ECHO))

    found = grounding.frame(result_frame(run, pd.RangeIndex(2)))

    assert grounding.checked(run) == answers
    assert found["row"].tolist() == [0]
    assert found.attrs["rows"]["status"] == ["ok", "cancelled"]


def test_rows_are_named_by_any_label() -> None:
    index = pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])

    found = pd.Series([BLACK, BLACK], index=index).vl.detect(prompts=[CAT, CAT], **ECHO)

    assert found["row"].tolist() == [("a", 1), ("a", 2)]


def test_a_series_has_the_same_verbs() -> None:
    series = pd.Series([BLACK], index=["a"])

    assert series.vl.detect(["cat"], prompts=[CAT], **ECHO)["row"].tolist() == ["a"]
    assert series.vl.point(["cat"], prompts=['{"point_2d": [1, 2]}'], **ECHO)["label"].tolist() == ["cat"]


def test_labels_of_a_column_are_asked_row_by_row() -> None:
    frame = pd.DataFrame({"image": [BLACK] * 4, "things": ["cat", ["猫", "狗"], None, []]})

    with pytest.warns(RowErrorWarning):
        rows = frame.vl.detect("image", "things", **ECHO).attrs["rows"]

    assert [raw.partition(" [")[0] for raw in rows["raw"]] == [
        "Detect every cat in the image and output the coordinates in JSON format.",
        "检测图中所有的猫、狗，以JSON格式输出坐标。",
        *["Detect every object in the image and output the coordinates in JSON format."] * 2,
    ]


@pytest.mark.parametrize(
    ("kind", "labels", "language", "prompt"),
    [
        (
            "box",
            ("a", "b", "c"),
            None,
            "Detect every a, b and c in the image and output the coordinates in JSON format.",
        ),
        ("box", (), "zh", "检测图中所有的物体，以JSON格式输出坐标。"),
        ("box", ("猫",), "en", "Detect every 猫 in the image and output the coordinates in JSON format."),
        ("point", ("a", "b"), None, "Point to every a and b in the image and output the coordinates in JSON format."),
        ("point", ("红色 car",), None, "指出图中所有的红色 car，以JSON格式输出坐标。"),
    ],
)
def test_prompts_are_in_the_language_of_their_labels(kind: Any, labels: Any, language: Any, prompt: str) -> None:
    assert object_prompt(kind, labels, language) == prompt


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("cat", r"must be a list of texts, or one list per row; got 'cat'\. Pass \['cat'\] for one label"),
        (["cat", "cat"], "'cat' twice"),
        (["cat", " "], "a text that is not blank"),
        ([], "labels is empty. Pass at least one, or None for any object"),
        ([["cat"]], "labels has 1 entries for 2 rows"),
        ([["cat"], 3], "labels of row 1 must be a list of texts"),
    ],
)
def test_invalid_labels_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        object_labels(labels, pd.RangeIndex(2))


def test_other_mistakes_are_refused_before_anything_runs() -> None:
    frame = pd.DataFrame({"image": [BLACK]})

    with pytest.raises(ConfigError, match="language must be 'en', 'zh' or None"):
        frame.vl.detect("image", language="de", **ECHO)
    with pytest.raises(ConfigError, match="The index of labels differs"):
        frame.vl.detect("image", pd.Series([["cat"]], index=[7]), **ECHO)
    with pytest.raises(ConfigError, match="backend='echo' generates no tokens"):
        frame.vl.detect("image", constrain=True, **ECHO)
    with pytest.raises(ConfigError, match="Beam search"):
        frame.vl.point("image", constrain=True, num_beams=2, **DEMO)


def test_scores_are_those_of_the_label_lowered_a_little_by_unsure_numbers_whatever_stands_around() -> None:
    words = [
        "Here",
        ": ",
        '{"bbox_2d": [',
        "1",
        "2",
        ", ",
        "3",
        ", ",
        "4",
        "0",
        ", ",
        "50",
        '], "label": "',
        "ca",
        "t",
        '"}',
    ]
    likely = {"1": 0.5, "2": 0.5, "3": 0.5, "4": 0.5, "0": 0.5, "50": 0.5, "ca": 0.9, "t": 0.5}
    tokens = [{"token": word, "logprob": math.log(likely.get(word, 0.01))} for word in words]
    text = "".join(words)

    (score,) = object_scores(parse_objects(text, "box").objects, text, tokens)

    assert score == pytest.approx(0.9 * 0.5 * 0.5**0.05)
    assert math.isnan(object_scores(parse_objects(text, "box").objects, text, None)[0])
    assert math.isnan(object_scores(parse_objects(text, "box").objects, text, tokens[1:])[0])


def test_a_frame_with_log_probabilities_has_scores() -> None:
    words = ['{"point_2d": [', "1", ", ", "2", "]}"]
    tokens = [{"token": word, "logprob": math.log(0.25)} for word in words]

    found = ground(["".join(words)], kind="point", logprobs=[tokens])

    assert found["score"].tolist() == [pytest.approx(0.25**0.05)]


@given(
    st.tuples(st.integers(1, 60_000), st.integers(1, 60_000)),
    st.lists(st.integers(0, 99_999), min_size=1, max_size=5),
    st.sampled_from(["box", "point"]),
)
@settings(max_examples=40, deadline=None)
def test_a_constrained_coordinate_lies_within_the_models_input(size: Size, numbers: list[int], kind: Kind) -> None:
    sides = size[::-1] * (2 if kind == "box" else 1)
    constraint = object_constraint(kind, ("cat",)).at(*size)
    key = json.loads(constraint.source)["items"]["required"][0]

    def is_allowed(coordinates: Sequence[int]) -> bool:
        matcher = LLMatcher(BYTES, _grammar(constraint), log_level=0)
        answer = json.dumps([{key: list(coordinates), "label": "cat"}]).encode()
        return matcher.try_consume_tokens(list(answer)) == len(answer) and matcher.is_accepting()

    assert is_allowed(sides)
    assert is_allowed([0] * len(sides))
    assert not any(is_allowed([*sides[:at], sides[at] + 1, *sides[at + 1 :]]) for at in range(len(sides)))
    assert is_allowed(numbers) == (
        len(numbers) == len(sides) and all(one <= side for one, side in zip(numbers, sides, strict=True))
    )


@pytest.mark.model
def test_constrained_answers_are_objects_of_the_labels_with_scores_and_cost_no_warning() -> None:
    frame = pd.DataFrame({"image": [draw(one) for one in sample_scenes(2, seed=4)]})
    constraint = object_constraint("box", ("red circle", "方块")).at(112, 112)
    assert json.loads(constraint.source)["items"]["properties"]["label"] == {"enum": ["red circle", "方块"]}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RowErrorWarning)  # a row whose only objects are outside of the image
        found = frame.vl.detect("image", ["red circle", "方块"], constrain=True, max_caption_length=400, **DEMO)

    assert found["score"].between(0, 1).all()  # also not missing
    written = [one for raw in found.attrs["rows"]["raw"] for one in json.loads(raw)]
    assert {one["label"] for one in written} <= {"red circle", "方块"}
    assert all(len(one["bbox_2d"]) == 4 for one in written)


@pytest.mark.model
def test_without_log_probabilities_there_are_no_scores_but_objects() -> None:
    frame = pd.DataFrame({"image": [draw(one) for one in sample_scenes(1, seed=4)]})

    frame.vl.detect("image", logprobs=None, constrain=True, max_caption_length=60, on_error="keep", **DEMO)
    last = qwenvl_kit.last_run()

    assert last is not None
    assert "logprobs" not in last
    with pytest.warns(OptionWarning, match="logprobs=0 is ignored"):
        frame.vl.detect("image", prompts=[CAT], logprobs=0, **ECHO)
