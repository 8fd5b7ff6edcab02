"""Odd input through the public door: what each case must give, on the echo backend.

Good rows stand beside every bad one, and must come out untouched.
"""

from __future__ import annotations

import base64
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import qwenvl_kit
from qwenvl_kit import ColumnNotFound, ConfigError, OptionWarning, RowErrors, RowErrorWarning, UnknownOption
from qwenvl_kit.options import DEFAULT_PROMPT

ECHO: dict[str, Any] = {"backend": "echo", "progress": False}
GOOD = np.full((56, 84, 3), 200, dtype=np.uint8)


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


PNG = encoded(Image.fromarray(GOOD))


def run(cells: list[Any], **options: Any) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RowErrorWarning)
        frame: pd.DataFrame = pd.Series(cells, dtype=object).vl.run(**{**ECHO, **options})
    return frame


def one(cell: Any, **options: Any) -> pd.Series:
    """The result of `cell` between two good rows, which must be untouched."""
    frame = run([GOOD, cell, GOOD[::-1]], **options)
    assert frame["status"].iloc[[0, 2]].tolist() == ["ok", "ok"]
    return frame.iloc[1]


# ------------------------------------------------------------------ parameters


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"do_sample": True, "temperature": 0}, r"temperature=0 .*above 0.*do_sample=False"),
        ({"do_sample": True, "temperature": -1.0}, r"temperature.*above 0"),
        ({"top_p": 0}, r"top_p=0 .*\(0, 1\]"),
        ({"top_p": 1.01}, r"top_p=1\.01 .*\(0, 1\]"),
        ({"max_caption_length": -1}, r"max_caption_length=-1 .*at least 1"),
        ({"batch_size": 0}, r"batch_size=0 .*at least 1"),
        ({"rows_in_flight": 0}, r"rows_in_flight=0 .*at least 1, 'auto'"),
        ({"rows_in_flight": "all"}, r"rows_in_flight='all' .*'auto'"),
        ({"batch_size": True}, r"batch_size=True .*an integer"),
        ({"resized_height": 0}, r"resized_height.*None"),
        ({"dtype": "int8"}, r"dtype='int8' is invalid\. Use bfloat16, float16 or float32"),
        ({"dtype": "fp16"}, r"Did you mean 'float16'"),
        ({"rank": -1}, r"rank=-1"),
        ({"rank": 0, "device_map": "auto"}, r"rank=0 and device_map='auto'"),
        ({"top_k": -5}, r"top_k=-5 .*at least 0"),
        ({"min_pixels": 9000, "max_pixels": 4000}, r"min_pixels=9000 exceeds max_pixels=4000"),
        ({"num_beams": 2, "do_sample": True}, r"num_beams=2 and do_sample=True"),
        ({"image_src_type": "url"}, r"Did you mean 'image_url'"),
        ({"backend": "tortch"}, r"Did you mean 'torch'"),
        ({"seed": -1}, r"seed=-1"),
        ({"timeout_s": float("nan")}, r"timeout_s"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_an_option_that_breaks_its_rule_is_refused_at_once(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        pd.Series([GOOD]).vl.caption(**{**ECHO, **options})


def test_a_misspelt_option_names_the_nearest_one() -> None:
    with pytest.raises(UnknownOption, match=r"'temprature'.*'temperature'") as caught:
        pd.Series([GOOD]).vl.caption(temprature=0.5, **ECHO)
    assert isinstance(caught.value, TypeError)


def test_sampling_values_without_sampling_are_dropped_with_one_warning_and_on_record() -> None:
    with pytest.warns(OptionWarning) as caught:
        said = pd.Series([GOOD]).vl.caption(temperature=0.7, top_p=0.9, **ECHO)

    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert "temperature=0.7" in str(caught[0].message)
    assert said.attrs["effective"]["temperature"] is None


@pytest.mark.parametrize("values", [{}, {"temperature": 1.0, "top_k": 50, "top_p": 1.0}], ids=["unset", "defaults"])
def test_default_sampling_values_make_no_noise(values: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.Series([GOOD]).vl.caption(do_sample=False, **values, **ECHO)


def test_strict_raises_where_a_named_option_cannot_take_effect() -> None:
    with pytest.raises(ConfigError, match=r"strict=True.*temperature=0\.7"):
        pd.Series([GOOD]).vl.caption(temperature=0.7, strict=True, **ECHO)
    pd.Series([GOOD]).vl.caption(strict=True, **ECHO)


@pytest.mark.parametrize("top_k", [0, None])
def test_no_top_k_is_no_filter(top_k: int | None) -> None:
    said = pd.Series([GOOD]).vl.caption(do_sample=True, top_k=top_k, seed=1, **ECHO)

    assert said.attrs["effective"]["top_k"] is None


@pytest.mark.parametrize(
    ("sizes", "seen"),
    [
        ({"resized_height": 100}, (112, 140)),
        ({"resized_width": 100}, (56, 112)),
        ({"resized_height": 100, "resized_width": 300}, (112, 308)),
        ({"resized_height": 300, "resized_width": 100}, (308, 112)),
        ({}, (56, 84)),
        ({"min_pixels": 10_000}, (84, 140)),
        ({"max_pixels": 3000, "min_pixels": 1000}, (28, 56)),
    ],
    ids=str,
)
def test_sizes_are_rounded_once_never_swapped_and_on_record(sizes: dict[str, int], seen: tuple[int, int]) -> None:
    result = one(GOOD + 1, **sizes)

    assert (result["height"], result["width"]) == seen
    assert f"{seen[1]}×{seen[0]}" in result["text"]


# ------------------------------------------------------------------ prompts


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, ""], ids=repr)
def test_a_missing_prompt_gets_the_prompt_option(missing: object) -> None:
    frame = pd.DataFrame({"image": [GOOD, GOOD], "prompt": pd.Series(["Own?", missing], dtype=object)})

    said = frame.vl.caption("image", prompts="prompt", **ECHO)

    assert said.iloc[0].startswith("Own?")
    assert said.iloc[1].startswith(DEFAULT_PROMPT)


def test_a_row_without_any_prompt_is_that_rows_error() -> None:
    frame = run([GOOD, GOOD, None], prompt=None, prompts=["Own?", None, None])

    assert frame["status"].tolist() == ["ok", "error", "null_image"]
    assert frame["stage"].iloc[1] == "generate"
    assert "prompt" in frame["error"].iloc[1]


def test_half_a_character_in_a_prompt_is_that_rows_error() -> None:
    frame = run([GOOD, GOOD[::-1]], prompts=["a \ud800 b", "图？"])

    assert frame["status"].tolist() == ["error", "ok"]
    assert "unpaired surrogate at index 2" in frame["error"].iloc[0]


def test_prompts_of_another_length_or_index_are_refused() -> None:
    frame = pd.DataFrame({"image": [GOOD, GOOD]})
    with pytest.raises(ConfigError, match="3 entries for 2 rows"):
        frame.vl.caption("image", prompts=["a", "b", "c"], **ECHO)
    with pytest.raises(ConfigError, match="index of prompts differs"):
        frame.vl.caption("image", prompts=pd.Series(["a", "b"], index=[1, 2]), **ECHO)
    with pytest.raises(ConfigError, match="position 1"):
        frame.vl.caption("image", prompts=["a", 7], **ECHO)


# ------------------------------------------------------------------ pictures


@pytest.mark.parametrize("null", [None, np.nan, pd.NA, "", "  ", b"", []], ids=repr)
@pytest.mark.parametrize("image_src_type", ["auto", "image_url", "image_base64", "image_binary"])
def test_a_missing_picture_is_null_and_never_an_answer(null: object, image_src_type: str) -> None:
    frame = run([null], image_src_type=image_src_type)

    assert frame["status"].tolist() == ["null_image"]
    assert frame["text"].isna().all()


def dresses() -> dict[str, str]:
    plain = base64.b64encode(PNG).decode()
    return {
        "plain": plain,
        "data": f"data:image/png;base64,{plain}",
        "data-url-quoted": "data:image/png;base64," + plain.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        "wrapped": "\n".join(plain[at : at + 60] for at in range(0, len(plain), 60)) + "\n",
        "url-safe": base64.urlsafe_b64encode(PNG).decode(),
        "unpadded": plain.rstrip("="),
    }


@pytest.mark.parametrize("dress", dresses())
@pytest.mark.parametrize("image_src_type", ["auto", "image_base64"])
def test_base64_is_read_in_every_dress(dress: str, image_src_type: str) -> None:
    result = one(dresses()[dress], image_src_type=image_src_type) if image_src_type == "auto" else None
    if result is None:
        result = run([dresses()[dress]], image_src_type=image_src_type).iloc[0]

    assert result["status"] == "ok"
    assert result["text"] == run([PNG]).iloc[0]["text"]


def test_what_is_no_base64_is_that_rows_error() -> None:
    frame = run(["!!!! not base64 !!!!", base64.b64encode(PNG).decode()], image_src_type="image_base64")

    assert frame["status"].tolist() == ["error", "ok"]
    assert frame["stage"].iloc[0] == "fetch"


@pytest.mark.parametrize(
    ("cell", "image_src_type", "right"),
    [
        (PNG, "image_url", "image_binary"),
        ("https://example.org/a.png", "image_binary", "image_url"),
        (dresses()["plain"], "image_binary", "image_base64"),
        ("https://example.org/a.png", "image_base64", "image_url"),
        (PNG, "image_base64", "image_binary"),
    ],
)
def test_the_wrong_image_src_type_is_that_rows_error_and_names_the_right_one(
    cell: object, image_src_type: str, right: str
) -> None:
    result = run([cell], image_src_type=image_src_type).iloc[0]

    assert result["status"] == "error"
    assert f"image_src_type='{right}'" in result["error"]


def test_a_local_path_is_accepted_under_image_url(tmp_path: Path) -> None:
    path = tmp_path / "图片 1.png"
    path.write_bytes(PNG)

    frame = run([str(path), path.as_uri(), path], image_src_type="image_url")

    assert frame["status"].tolist() == ["ok"] * 3
    assert frame["text"].nunique() == 1


def pixels_of(picture: Image.Image, **options: Any) -> np.ndarray:
    """What the model would see of a picture, asked of a model that remembers."""
    from qwenvl_kit.images import ImageLoader, Sizing, classify
    from qwenvl_kit.options import Config
    from qwenvl_kit.types import PatchGeometry

    config = Config(**options)
    (source,) = classify(encoded(picture, **({"format": "TIFF"} if picture.mode in ("CMYK", "I;16") else {})))
    return ImageLoader.of(config, Sizing.of(config, PatchGeometry())).load(source).pixels


def test_alpha_lies_over_white_and_palettes_are_understood() -> None:
    clear = Image.new("RGBA", (56, 56), (255, 0, 0, 0))
    palette = Image.new("RGB", (56, 56), (0, 0, 255)).convert("P")
    see_through = clear.convert("LA")

    assert (pixels_of(clear) == 255).all()
    assert (pixels_of(see_through) == 255).all()
    assert pixels_of(palette)[0, 0].tolist() == [0, 0, 255]


def test_cmyk_and_16_bit_are_seen_in_their_right_brightness() -> None:
    red = Image.new("RGB", (56, 56), (255, 0, 0)).convert("CMYK")
    half = Image.fromarray(np.full((56, 56), 32768, dtype=np.uint16))

    assert pixels_of(red)[0, 0].tolist() == [255, 0, 0]
    assert abs(int(pixels_of(half)[0, 0, 0]) - 128) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_exif_orientations_come_out_upright(orientation: int) -> None:
    upright = np.zeros((56, 84, 3), dtype=np.uint8)
    upright[:28, :28] = 255  # a mark in the top left corner
    turns = {
        1: 0,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(upright) if orientation == 1 else Image.fromarray(upright).transpose(turns[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation

    frame = run([encoded(stored, exif=exif), upright])

    assert frame[["height", "width"]].iloc[0].tolist() == [56, 84]
    from qwenvl_kit.images.decode import decode_bytes

    pixels, size = decode_bytes(encoded(stored, exif=exif), "it", max_image_pixels=10**6)
    assert np.array_equal(pixels, upright)
    assert size == (56, 84)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "WEBP"])
def test_the_first_frame_is_seen_of_animations_and_pages(format: str) -> None:
    frames = [Image.new("RGB", (56, 56), colour) for colour in ("white", "black")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])

    from qwenvl_kit.images.decode import decode_bytes

    pixels, _ = decode_bytes(data, "it", max_image_pixels=10**6)
    assert pixels.mean() > 250


@pytest.mark.parametrize(
    "array",
    [
        np.full((56, 56), 7, dtype=np.uint8),
        np.full((56, 56, 1), 7, dtype=np.uint8),
        np.full((56, 56, 4), 255, dtype=np.uint8),
        np.full((56, 56, 3), 0.5),
        np.ones((56, 56), dtype=bool),
        np.full((56, 56), 40_000, dtype=np.uint16),
        np.zeros((56, 56, 3), dtype=np.uint8)[::-1],
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_of_every_usual_form_are_pictures(array: np.ndarray) -> None:
    assert one(array)["status"] == "ok"


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((3, 56, 56), dtype=np.uint8), "moveaxis"),
        (np.full((56, 56, 3), 3.5), "floats from 0 to 1"),
        (np.zeros((56, 56, 3), dtype=np.int32) - 1, "uint8"),
        (np.zeros((0, 56, 3), dtype=np.uint8), "shape"),
        (np.zeros(56, dtype=np.uint8), "shape"),
    ],
    ids=["channels-first", "floats", "int32", "empty", "1-d"],
)
def test_arrays_that_are_no_pictures_say_what_to_give(array: np.ndarray, told: str) -> None:
    result = one(array)

    assert (result["status"], result["stage"]) == ("error", "decode")
    assert told in result["error"]


JPEG = encoded(Image.effect_noise((200, 200), 80).convert("RGB"), "JPEG")


@pytest.mark.parametrize(
    ("cell", "stage", "told"),
    [
        (JPEG[: len(JPEG) // 2], "decode", "truncated"),
        (JPEG[:20], "decode", ""),
        (b"<!DOCTYPE html><html>404</html>", "decode", "HTML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "decode", "SVG"),
        (b"\x00" * 100, "decode", "Not an image"),
        ("no-such-file.png", "fetch", "does not exist"),
        (".", "fetch", "Not a regular file"),
        (12.5, "fetch", "type float"),
        ({"bytes": None, "path": None}, "fetch", "both empty"),
        (np.zeros((5600, 20, 3), dtype=np.uint8), "resize", "280:1"),
        ([GOOD, None], "fetch", "Image 2 of 2"),
        ("gopher://example.org/a.png", "fetch", "gopher"),
    ],
    ids=[
        "truncated",
        "header-only",
        "html",
        "svg",
        "zeros",
        "missing",
        "folder",
        "number",
        "empty-mapping",
        "needle",
        "gap-in-list",
        "unknown-scheme",
    ],
)
def test_each_bad_picture_is_an_error_of_its_stage(cell: object, stage: str, told: str) -> None:
    result = one(cell)

    assert (result["status"], result["stage"]) == ("error", stage)
    assert told in result["error"]


def test_limits_on_bytes_and_pixels_are_row_errors_that_name_the_option() -> None:
    assert "max_image_bytes=100" in run([PNG + b"\x00" * 200], max_image_bytes=100)["error"].iloc[0]
    frame = run([PNG, np.zeros((20, 20, 3), dtype=np.uint8)], max_image_pixels=1000)
    assert frame["status"].tolist() == ["error", "ok"]
    assert "84×56 = 4704 pixels" in frame["error"].iloc[0]


@pytest.mark.parametrize("shape", [(1, 1), (1, 150), (150, 1), (3, 600), (2000, 2000)], ids=str)
def test_tiny_huge_and_needle_like_pictures_are_brought_within_the_limits(shape: tuple[int, int]) -> None:
    result = one(np.zeros((*shape, 3), dtype=np.uint8), max_pixels=100_000)

    assert result["status"] == "ok"
    assert 3136 <= result["height"] * result["width"] <= 100_000
    assert result["height"] % 28 == result["width"] % 28 == 0


def test_no_secret_of_an_address_reaches_a_message() -> None:
    address = "http://user:hunter2@127.0.0.1:9/a.png?X-Amz-Signature=deadbeef&token=s3cr3t#frag"

    result = one(address, timeout_s=2)

    assert "127.0.0.1:9/a.png" in result["error"]
    for secret in ("hunter2", "deadbeef", "s3cr3t", "user"):
        assert secret not in result["error"]


def test_a_missing_extra_names_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert "pip install 'qwenvl_kit[s3]'" in one("s3://bucket/a.png")["error"]


def test_data_set_mappings_and_lists_are_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    frame = run([{"bytes": PNG, "path": None}, {"bytes": None, "path": str(path)}, [PNG, GOOD], (GOOD,)])

    assert frame["status"].tolist() == ["ok"] * 4
    assert frame["text"].iloc[2].count("×") == 2


# ------------------------------------------------------------------ frames


@pytest.mark.parametrize(
    "index",
    [[7, 7, 7], pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)]), pd.date_range("2026-01-01", periods=3)],
    ids=["duplicates", "multi", "dates"],
)
def test_results_stand_by_position_under_the_same_index(index: Any) -> None:
    frame = pd.DataFrame({"image": [GOOD, None, GOOD[::-1]], "q": ["a?", "b?", "c?"]}, index=index)

    said = frame.vl.caption("image", prompts="q", **ECHO)
    answers = frame.vl.ask("image", {"x": "q", "y": "What else?"}, **ECHO)
    result = frame.vl.run("image", prompts="q", **ECHO)

    assert said.index.equals(frame.index)
    assert answers.index.equals(frame.index)
    assert result.index.equals(frame.index)
    assert [text[:2] if isinstance(text, str) else None for text in said] == ["a?", None, "c?"]
    assert answers["x"].iloc[2].startswith("c?")
    assert answers["y"].iloc[2].startswith("What else?")


def test_a_sliced_frame_gives_results_for_the_slice() -> None:
    frame = pd.DataFrame({"image": [GOOD, PNG, None, GOOD]})[1:3]

    assert frame.vl.run("image", **ECHO)["status"].tolist() == ["ok", "null_image"]


@pytest.mark.parametrize("cells", [[], [None, None]], ids=["empty", "all-null"])
def test_an_empty_or_all_null_frame_is_typed_and_loads_no_model(
    cells: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenvl_kit.inference.echo.EchoSpec.load", lambda *_: pytest.fail("loaded"))
    qwenvl_kit.unload()
    frame = pd.DataFrame({"image": pd.Series(cells, dtype=object)})
    filled = pd.Series([GOOD]).astype(object)

    result = frame.vl.run("image", **ECHO)
    said = frame.vl.caption("image", **ECHO)
    answers = frame.vl.ask("image", {"a": "What is it?"}, **ECHO)
    monkeypatch.undo()

    assert result.dtypes.equals(filled.vl.run(**ECHO).dtypes)
    assert said.dtype == filled.vl.caption(**ECHO).dtype
    assert answers.shape == (len(cells), 1)
    assert len(result) == len(said) == len(cells)


def test_the_same_picture_and_prompt_is_asked_once_greedily_and_each_time_when_sampling() -> None:
    cells = [GOOD, GOOD.copy(), PNG, PNG, GOOD]

    greedy = run(cells)
    sampled = run(cells, do_sample=True, seed=1)

    assert (~greedy["cached"]).sum() == 2
    assert (~sampled["cached"]).sum() == 5
    assert sampled["text"].nunique() == 5


def test_on_error_keep_warns_once_with_counts_by_stage_at_the_callers_line() -> None:
    cells = pd.Series([GOOD, "missing.png", b"rubbish", "gone.png"], index=list("abcd"))
    with pytest.warns(RowErrorWarning) as caught:
        said = cells.vl.caption(**ECHO)

    assert len(caught) == 1
    assert caught[0].filename == __file__
    message = str(caught[0].message)
    assert "3 of 4 rows failed" in message
    assert "fetch: 2" in message
    assert "decode: 1" in message
    assert "row 1 (index 'b')" in message
    assert said.isna().tolist() == [False, True, True, True]


def test_on_error_raise_finishes_all_rows_first() -> None:
    cells = pd.Series(["missing.png", GOOD, b"rubbish"])
    with pytest.raises(RowErrors, match="2 of 3") as caught:
        cells.vl.caption(on_error="raise", **ECHO)

    assert caught.value.results.notna().tolist() == [False, True, False]
    last = qwenvl_kit.last_run()
    assert last is not None
    assert last["status"].tolist() == ["error", "ok", "error"]


def test_a_missing_column_lists_those_there_are() -> None:
    frame = pd.DataFrame({"image": [GOOD], "colour": ["What colour?"]})
    with pytest.raises(ColumnNotFound, match=r"'img'.*'image', 'colour'"):
        frame.vl.caption("img", **ECHO)
    with pytest.raises(ColumnNotFound, match="'color'"):
        frame.vl.ask("image", "color", **ECHO)
    with pytest.raises(ColumnNotFound, match="2 columns have the label"):
        pd.concat([frame, frame], axis=1).vl.caption("image", **ECHO)


def test_ask_takes_a_question_a_column_or_several() -> None:
    frame = pd.DataFrame({"image": [GOOD, PNG], "colour": ["What colour?", "Which one?"]})

    assert frame.vl.ask("image", "What is it?", **ECHO).str.startswith("What is it?").all()
    assert frame.vl.ask("image", "colour", **ECHO).str[:10].tolist() == ["What colou", "Which one?"]
    assert frame.vl.ask("image", "颜色？", **ECHO).str.startswith("颜色？").all()
    assert list(frame.vl.ask("image", {"a": "colour", "b": "How many?"}, **ECHO).columns) == ["a", "b"]
    with pytest.raises(ConfigError, match="mapping of questions is empty"):
        frame.vl.ask("image", {}, **ECHO)


def test_an_answer_cut_by_the_limit_says_length() -> None:
    assert run([GOOD], prompt="one two three four", max_caption_length=2)["finish_reason"].tolist() == ["length"]
    assert run([GOOD], prompt="one", max_caption_length=20)["finish_reason"].tolist() == ["stop"]


def test_the_record_travels_as_plain_json() -> None:
    frame = run([GOOD], device_map={"": "cpu"}, max_memory={0: "1GiB"}, batch_size=np.int64(2))

    assert json.loads(json.dumps(frame.attrs))["asked"]["batch_size"] == 2
    assert frame.attrs["rows"] == {"ok": 1}
    assert {"torch", "transformers", "qwenvl_kit"} <= set(frame.attrs["versions"])
