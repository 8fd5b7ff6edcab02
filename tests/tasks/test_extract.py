"""Columns of a schema have their dtypes, and every row its status: whole, repaired, cut or no JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import jsonschema
import numpy as np
import pandas as pd
import pytest
from helpers.fake_backends import gray
from helpers.schemas import SCHEMAS
from hypothesis import HealthCheck, given, settings
from PIL import Image

import qwenvl_kit
from qwenvl_kit import ColumnNotFound, Config, ConfigError, RowErrors, RowErrorWarning
from qwenvl_kit.demo import draw, sample_scenes
from qwenvl_kit.tasks.extract import Extraction

DEMO: dict[str, Any] = {"model_name": "demo", "dtype": "float32", "progress": False}
SMALL = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "is_dark": {"type": "boolean"},
        "share": {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.5},
        "colours": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 2},
        "place": {"type": "object", "properties": {"row": {"enum": ["top", "bottom"]}, "n": {"enum": [1, 2]}}},
    },
}
FIELDS = {"count": int, "colours": list[str], "place": {"row": str, "n": int | None}}


def images(n: int) -> pd.DataFrame:
    return pd.DataFrame({"image": [Image.fromarray(draw(one)) for one in sample_scenes(n, seed=4)]})


def read(texts: list[str | None], schema: Any = FIELDS, *, reason: str = "stop", **how: Any) -> pd.DataFrame:
    """Return the columns of texts, as an unconstrained model would give them."""
    results = pd.DataFrame({"text": texts, "finish_reason": reason, "status": "ok", "error": None})
    return Extraction.of(schema, Config(**DEMO), **{"constrain": False, **how}).frame(results)


@pytest.mark.model
def test_constrained_columns_have_their_dtypes_and_values_of_the_schema() -> None:
    frame = images(3)
    found = frame.vl.extract("image", SMALL, max_caption_length=120, **DEMO)

    assert found.dtypes.astype(str).tolist()[:5] == ["Int64", "boolean", "Float64", "object", "object"]
    assert found["status"].tolist() == ["ok"] * 3
    assert found["repaired"].isna().all()
    for raw, count, place in zip(found["raw"], found["count"], found["place"], strict=True):
        jsonschema.validate(json.loads(raw), SMALL)
        assert (count, place) == (json.loads(raw)["count"], json.loads(raw)["place"])


@pytest.mark.model
def test_flatten_gives_dotted_columns_under_the_frames_index() -> None:
    frame = images(2).set_index(pd.Index(["x", "x"]))
    found = frame["image"].vl.extract(SMALL, flatten=True, max_caption_length=120, **DEMO)

    assert found.index.tolist() == ["x", "x"]
    assert found.columns[4:6].tolist() == ["place.row", "place.n"]
    assert str(found["place.n"].dtype) == "Int64"
    assert found["place.row"].isin(["top", "bottom"]).all()


@pytest.mark.model
def test_a_cut_answer_is_that_rows_error_and_keeps_its_text_and_whole_fields() -> None:
    schema = {"count": {"enum": [1, 2]}, "note": {"type": "string", "minLength": 500}}
    frame = pd.DataFrame({"image": [*images(1)["image"], None]})

    with pytest.warns(RowErrorWarning, match="truncated: max_caption_length ended the answer after 20 tokens"):
        found = frame.vl.extract("image", schema, max_caption_length=20, **DEMO)

    assert found["status"].tolist() == ["error", "null_image"]
    assert found["raw"][0].startswith('{"count":')
    assert found["count"][0] in (1, 2)
    assert pd.isna(found["note"]).all()
    assert found["repaired"][0] == "ends within note; kept what is complete"
    assert found.attrs["rows"] == {"error": 1, "null_image": 1}
    last = qwenvl_kit.last_run()
    assert last is not None
    assert last["stage"][0] == "generate"
    with pytest.raises(RowErrors):
        frame.vl.extract("image", schema, max_caption_length=20, on_error="raise", **DEMO)


@pytest.mark.model
def test_alone_and_in_a_batch_answers_are_equal_and_found_in_the_store(tmp_path: Path) -> None:
    frame, store = images(4), str(tmp_path / "s.db")
    together = frame.vl.extract("image", SMALL, max_caption_length=120, store=store, **DEMO)
    alone = pd.concat([frame.iloc[[at]].vl.extract("image", SMALL, max_caption_length=120, **DEMO) for at in range(4)])
    again = frame.vl.extract("image", SMALL, max_caption_length=120, store=store, **DEMO)

    pd.testing.assert_frame_equal(together, alone, check_flags=False)
    pd.testing.assert_frame_equal(together, again)
    assert again.attrs["cached"] == 4


@pytest.mark.model
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(schema=SCHEMAS)
def test_any_schema_gives_valid_answers_or_a_truncated_error(schema: dict[str, Any]) -> None:
    found = extracted(images(1), schema)

    if found["status"][0] == "ok":
        jsonschema.validate(json.loads(found["raw"][0]), schema)
    else:
        assert found["error"][0].startswith("truncated: ")


def extracted(frame: pd.DataFrame, schema: Any) -> pd.DataFrame:
    try:
        return frame.vl.extract("image", schema, max_caption_length=60, on_error="raise", **DEMO)
    except RowErrors as error:
        found: pd.DataFrame = error.results
        return found


@pytest.mark.model
def test_regex_and_choices_give_such_answers_or_nulls() -> None:
    frame = images(3)
    chosen = frame.vl.ask("image", "Is there a circle?", choices=["yes", "no"], **DEMO)
    matched = frame["image"].vl.ask("How many?", regex="[0-9]{2}", **DEMO)
    with pytest.warns(RowErrorWarning, match="truncated"):
        cut = frame.vl.ask("image", "How many?", regex="[0-9]{40}", max_caption_length=5, **DEMO)

    assert chosen.isin(["yes", "no"]).all()
    assert matched.str.fullmatch("[0-9]{2}").all()
    assert cut.isna().all()
    assert chosen.name == "answer"


@pytest.mark.model
def test_each_row_has_choices_of_its_own() -> None:
    frame = images(4).assign(tags=[["yes", "no"], None, ["one", "two", "two"], ["yes", "no"]])
    with pytest.warns(RowErrorWarning, match=r"row 1 .*The row has no choices\. Fill the column"):
        chosen = frame.vl.ask("image", "Which?", choices="tags", **DEMO)
    listed = frame["image"].iloc[[0, 2]].vl.ask("Which?", choices=[["yes", "no"], ["one", "two"]], **DEMO)

    assert chosen.isna().tolist() == [False, True, False, False]
    assert chosen.iloc[0] in ("yes", "no")
    assert chosen.iloc[2] in ("one", "two")
    assert listed.tolist() == chosen.iloc[[0, 2]].tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"regex": "a", "choices": ["a"]}, "exclude each other"),
        ({"regex": "a", "options": ["a", "b"]}, "exclude each other"),
        ({"regex": "(?=a)"}, "look-around"),
        ({"regex": ""}, "not empty"),
        ({"choices": []}, "choices is empty"),
        ({"choices": [["yes"], ["no"]]}, "choices has 2 entries for 1 rows. Pass one list per row"),
        ({"choices": [["yes", 1]]}, "choices of row 0 must be text"),
        ({"choices": pd.Series([["yes"]], index=[5])}, "The index of choices differs"),
        ({"choices": "yes"}, "No column 'yes'"),
        ({"choices": ["yes", ""]}, "not empty"),
        ({"choices": ["\ud800"]}, "surrogate at index 0"),
        ({"choices": ["a"], "num_beams": 2}, "Beam search"),
        ({"choices": ["a"], "backend": "echo"}, "cannot be constrained"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_form_is_said_before_anything_loads(given: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ColumnNotFound), match=message):
        images(1).vl.ask("image", "What is it?", **{**DEMO, **given})


def test_a_form_belongs_to_one_question() -> None:
    with pytest.raises(ConfigError, match="belong to one question"):
        images(1).vl.ask("image", {"a": "What is it?"}, choices=["a"], **DEMO)


@pytest.mark.parametrize(
    ("schema", "options", "message"),
    [
        ({"status": str}, {}, "'status' is also a column"),
        ({"a": {"not": {"type": "string"}, "type": "string"}}, {}, "llguidance refuses the schema"),
        ({"a": {"type": "string", "pattern": "(?=a)"}}, {}, "llguidance refuses the schema"),
        ({"a": {"type": "array", "items": {}, "minItems": 3, "maxItems": 2}}, {}, "llguidance refuses"),
        ({"a": {"$ref": "http://x"}}, {}, "Nothing is fetched"),
        ({"a": int}, {"num_beams": 2}, "Beam search"),
        ({"a": int}, {"backend": "echo"}, "cannot be constrained"),
    ],
    ids=str,
)
def test_a_schema_that_cannot_be_used_is_an_error_before_anything_loads(
    schema: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        images(1).vl.extract("image", schema, **{**DEMO, "model_name": "no such model", **options})


def test_free_answers_are_read_leniently_and_say_what_was_repaired() -> None:
    found = read(
        [
            '```json\n{"count": "3", "colours": ["red"], "place": {"row": "top", "n": null}}\n```',
            "{'count': 2.0, 'colours': 'red'}",
            '{"count": true, "colours": [], "place": {"row": 7, "n": 1}}',
            None,
        ],
        flatten=True,
    )

    assert found["count"].tolist() == [3, 2, pd.NA, pd.NA]
    assert found["colours"].tolist() == [["red"], None, [], None]
    assert found["place.n"].tolist() == [pd.NA, pd.NA, 1, pd.NA]
    assert found["repaired"].tolist()[:3] == [
        "removed a code fence; count: read '3'",
        "replaced single quotes; colours: 'red' is left out; no place.row; no place.n",
        "count: True is left out; place.row: 7 is left out",
    ]


def test_numbers_beyond_a_column_are_left_out() -> None:
    found = read(['{"value": 1e30}', f'{{"value": {2**70}}}', '{"value": 1.5}'], {"value": int})

    assert found["value"].isna().all()
    assert found["repaired"].str.contains("left out").all()


def test_schemas_without_an_object_give_one_column() -> None:
    assert read(["[1, 2]"], list[int])["value"].tolist() == [[1, 2]]
    assert read(["3"], int)["value"].tolist() == [3]


def test_free_answers_without_json_or_cut_are_errors_with_their_text() -> None:
    frame = pd.DataFrame({"image": [gray(1)]})
    with pytest.warns(RowErrorWarning, match="holds no JSON"):
        found = frame.vl.extract("image", FIELDS, constrain=False, prompt="What?", backend="echo", progress=False)
    with pytest.warns(RowErrorWarning, match="truncated"):
        cut = frame.vl.extract(
            "image", FIELDS, constrain=False, prompt='{"count": 4, "colours": ["red", "blu e"', backend="echo",
            max_caption_length=5, progress=False,
        )  # fmt: skip

    assert found["raw"][0].startswith("What?")
    assert cut["count"][0] == 4
    assert cut["colours"][0] == ["red"]
    assert cut["repaired"][0] == "ends within colours.1; kept what is complete"


def test_without_a_prompt_each_row_is_asked_for_the_fields() -> None:
    extraction = Extraction.of(FIELDS, Config(**DEMO))
    (own,), (default,) = extraction.prompts(["Mine"], is_own=True), extraction.prompts([None], is_own=False)

    assert own is not None
    assert default is not None
    assert own.text == "Mine"
    assert "- colours: list of: text" in default.text
    assert own.constraint == default.constraint == extraction.constraint
    assert extraction.prompts([None], is_own=True) == [None]


def test_empty_frames_have_the_columns() -> None:
    found = pd.DataFrame({"image": np.array([], dtype=object)}).vl.extract("image", FIELDS, **DEMO)

    assert found.columns.tolist() == ["count", "colours", "place", "raw", "repaired", "status", "error"]
    assert str(found["count"].dtype) == "Int64"


@pytest.mark.model
def test_log_probabilities_give_a_confidence_per_field() -> None:
    schema = {"colour": Literal["red", "blue"], "parts": {"count": Literal[1, 2, 3]}, "鹰": bool}
    cells = images(3)["image"]
    found = cells.vl.extract(schema, flatten=True, logprobs=0, **DEMO)

    fields = ["colour", "parts.count", "鹰"]
    assert [name for name in found if name.endswith("_confidence")] == [f"{name}_confidence" for name in fields]
    for name in fields:
        assert found[f"{name}_confidence"].between(0, 1).all()
    run = qwenvl_kit.last_run()
    assert run is not None
    for row in range(3):
        tokens, value = run["logprobs"].iloc[row], found["colour"].iloc[row]
        text, total = "", 0.0
        for one in tokens:
            begin, text = len(text), text + one["token"]
            at = run["text"].iloc[row].index(f'"{value}"')
            if begin < at + len(value) + 2 and len(text) > at:
                total += one["logprob"]
            if len(text) >= at + len(value) + 2:
                break
        assert found["colour_confidence"].iloc[row] == pytest.approx(math.exp(total))
    assert not [name for name in cells.vl.extract(schema, **DEMO) if "confidence" in name]
