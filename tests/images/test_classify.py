"""What a cell is taken for, and what its label tells."""

from __future__ import annotations

import base64
import contextlib
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.malformed_inputs import encoded, noise
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwenvl_kit.errors import RowError, RowErrorWarning
from qwenvl_kit.images.classify import classify, count_images, is_null
from qwenvl_kit.images.urls import redact_url
from qwenvl_kit.types import ImageSource

PNG = encoded(noise(30, 20, 0), "PNG")
TEXT = base64.b64encode(PNG).decode()


def only(cell: object, image_src_type: Any = "auto") -> ImageSource:
    (source,) = classify(cell, image_src_type)
    return source


def outcome(cell: object) -> object:
    """The sources of a cell, or what is said of it."""
    try:
        return classify(cell)
    except RowError as error:
        return error.message


def error_message(cell: object, image_src_type: Any = "auto") -> str:
    with pytest.raises(RowError) as caught:
        classify(cell, image_src_type)
    assert caught.value.stage == "fetch"
    return caught.value.message


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ("http://example.org/a.png", "url"),
        ("  HTTPS://example.org/a.png\n", "url"),
        ("s3://bucket/a.png", "remote"),
        ("tos://bucket/a.png", "remote"),
        ("file:///tmp/a.png", "path"),
        ("a.png", "path"),
        ("/9j/a.png", "path"),
        ("~/图片/a.png", "path"),
        ("C:\\images\\a.png", "path"),
        (Path("a.png"), "path"),
        (np.str_("a.png"), "path"),
        (TEXT, "base64"),
        ("data:image/png;base64,AAAA", "base64"),
        (" DATA:image/png,AAAA", "base64"),
        (PNG, "bytes"),
        (bytearray(PNG), "bytes"),
        (memoryview(PNG), "bytes"),
        (np.bytes_(PNG), "bytes"),
        (Image.new("L", (3, 3)), "pil"),
        (np.zeros((3, 3)), "array"),
    ],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:9]!r}",
)
def test_a_cell_is_told_by_its_value(cell: object, kind: str) -> None:
    assert only(cell).kind == kind


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "ICO"])
def test_short_base64_of_every_usual_format_is_told_from_a_path(form: str) -> None:
    data = encoded(noise(16, 16, 1), form)

    assert only(base64.b64encode(data).decode()[:4096]).kind == "base64"


def test_a_file_whose_name_looks_like_base64_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = TEXT[:40].replace("/", "_").replace("+", "_")
    assert only(name).kind == "base64"

    (tmp_path / name).write_bytes(PNG)

    assert only(name).kind == "path"


@pytest.mark.parametrize("null", [None, np.nan, np.float32("nan"), pd.NA, pd.NaT, "", " \n", b"", [], ()], ids=repr)
def test_nulls_hold_no_image(null: object) -> None:
    assert is_null(null)
    assert classify(null) == ()


@pytest.mark.parametrize(
    "null",
    [np.array([], "U1"), np.array(None), np.array(""), pd.Series([], dtype=object), pd.Categorical([])],
    ids=repr,
)
def test_empty_arrays_of_texts_hold_no_image(null: object) -> None:
    assert classify(null) == ()


@pytest.mark.parametrize(
    ("cell", "image_src_type", "right"),
    [
        (PNG, "image_url", "image_binary"),
        (PNG, "image_base64", "image_binary"),
        ("http://example.org/a.png", "image_binary", "image_url"),
        ("a.png", "image_binary", "image_url"),
        (TEXT, "image_binary", "image_base64"),
        ("data:image/png;base64,AAAA", "image_binary", "image_base64"),
        ("s3://bucket/a.png", "image_base64", "image_url"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_wrong_image_src_type_names_the_right_one(cell: object, image_src_type: str, right: str) -> None:
    message = error_message(cell, image_src_type)

    assert f"image_src_type='{image_src_type}'" in message
    assert f"Pass image_src_type='{right}'" in message


def test_a_data_uri_is_an_address_too() -> None:
    assert only("data:image/png;base64,AAAA", "image_url").kind == "base64"


@pytest.mark.parametrize(
    "data",
    [TEXT.encode(), b"data:image/png;base64,\xff", TEXT.encode() + b"\xa0", b"data:\x80"],
    ids=["plain", "half-ascii", "no-break-space", "no-comma"],
)
def test_base64_may_come_as_bytes_of_any_kind(data: bytes) -> None:
    assert only(data, "image_base64").kind == "base64"


# ------------------------------------------------------------------ mappings and lists


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA, b"", ""], ids=repr)
def test_a_data_sets_mapping_gives_its_bytes_else_its_path(gap: object) -> None:
    assert only({"bytes": PNG, "path": "a.png"}).kind == "bytes"
    assert only({"bytes": PNG}).kind == "bytes"
    assert only({"bytes": gap, "path": "a.png"}).value == "a.png"
    assert only({"bytes": np.zeros((2, 2), np.uint8), "path": gap}).kind == "array"
    assert "both empty" in error_message({"bytes": gap, "path": gap})


class Unreadable(list[object]):
    """A cell whose own code raises."""

    def __iter__(self) -> Any:
        raise OSError("gone")


@pytest.mark.parametrize(
    ("cell", "n_images"),
    [
        *((None, 0), ("", 0), ([], 0), ("a.png", 1), (b"x", 1), (["a.png"], 1), (("a.png", "b.png"), 2)),
        (np.zeros((4, 4, 3), np.uint8), 1),
        (np.array(["a.png", "b.png"], dtype=object), 2),
        (Unreadable(["a.png", "b.png"]), 1),
    ],
)
def test_images_of_a_cell_are_counted_before_they_are_read(cell: object, n_images: int) -> None:
    assert count_images(cell) == n_images


def test_a_list_is_several_images_in_order() -> None:
    cells = ["a.png", PNG, {"bytes": PNG}]

    for form in (cells, tuple(cells), np.array(cells, dtype=object)):
        assert [source.kind for source in classify(form)] == ["path", "bytes", "bytes"]


@pytest.mark.parametrize(
    ("cell", "what"),
    [(["a.png", None], "Image 2 of 2 in this cell is missing"), ([["a.png"], "b.png"], "Image 1 of 2 .* a list")],
    ids=["gap", "nested"],
)
def test_a_list_with_a_hole_is_refused_whole(cell: object, what: str) -> None:
    with pytest.raises(RowError, match=what):
        classify(cell)


class Stubborn:
    """A tensor that cannot become an array, as those on a GPU or with a gradient."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise self.error


@pytest.mark.parametrize("error", [TypeError("cuda"), RuntimeError("requires grad"), ValueError("no")], ids=repr)
def test_a_tensor_that_gives_no_array_is_that_rows_error_and_says_how_to_give_one(error: Exception) -> None:
    assert "detach().float().cpu().numpy()" in error_message(Stubborn(error))


@pytest.mark.parametrize(
    "cell", [7, 1.5, True, object(), {"url": "a.png"}, {1, 2}, io.BytesIO(PNG)], ids=lambda cell: type(cell).__name__
)
def test_what_is_no_image_is_refused_with_its_type(cell: object) -> None:
    assert type(cell).__name__ in error_message(cell)


# ------------------------------------------------------------------ keys


DTYPES = ["u1", "?", "u2", ">u2", "i4", "f2", "f4", "c8", "M8[s]", "m8[D]", "U3", "S2", "V5", "V0", "i4,f4", "O"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3)], ids=str)
def test_an_array_of_any_kind_is_named_without_failing(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, dtype)
    if array.dtype.kind in "OSU" and array.ndim < 2:  # a list of addresses, or one
        assert outcome(array) == outcome(array.tolist())
        return
    assert only(array).kind == "array"


@pytest.mark.parametrize(
    "make",
    [
        np.array,
        lambda texts: np.array(texts, dtype=np.dtypes.StringDType()) if hasattr(np.dtypes, "StringDType") else texts,
        lambda texts: np.array(texts, dtype=object),
        pd.array,
        pd.Series,
        pd.Index,
        pd.Categorical,
        lambda texts: pytest.importorskip("pyarrow").array(texts),
        lambda texts: pytest.importorskip("pyarrow").chunked_array([texts[:1], texts[1:]]),
        lambda texts: [np.array(text) for text in texts],
        lambda texts: [pytest.importorskip("pyarrow").scalar(text) for text in texts],
    ],
    ids=["U", "T", "O", "pandas", "Series", "Index", "Categorical", "Arrow", "chunked", "0-d", "scalars"],
)
def test_texts_in_any_array_are_as_in_a_list(make: Any) -> None:
    texts = ["a.png", "https://example.org/b.png"]

    assert classify(make(texts)) == classify(texts)
    assert classify(make(["a.png"])) == classify(["a.png"])


def test_columns_of_unique_addresses_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    frame = pd.DataFrame({"product": ["x", "x"], "image": [str(path), str(path)]})

    column = frame.groupby("product")["image"].unique()

    assert column.vl.run(backend="echo", progress=False)["status"].tolist() == ["ok"]


class Lazy:
    """As arrays of a damaged HDF5 file behave, or paths of a mount that is gone."""

    shape, dtype, ndim = (60, 80, 3), np.dtype("uint8"), 3

    def __init__(self, error: Exception, name: str) -> None:
        self._error = error
        setattr(type(self), name, Lazy._fail)

    def _fail(self, *_: object, **__: object) -> Any:
        raise self._error


@pytest.mark.parametrize("name", ["__array__", "__fspath__", "__getattr__", "__len__"])
@pytest.mark.parametrize(
    "error",
    [OSError("inflate() failed"), KeyError("c/0/0"), AttributeError("closed"), MemoryError(), RecursionError("deep")],
    ids=lambda error: type(error).__name__,
)
def test_a_cell_whose_own_code_raises_is_that_rows_error(name: str, error: Exception) -> None:
    one = type("One", (Lazy,), {})(error, name)
    column = pd.Series([one, PNG], dtype=object)

    with pytest.warns(RowErrorWarning):
        frame = column.vl.run(backend="echo", progress=False)

    assert frame["status"].tolist() == ["error", "ok"]


def test_a_view_that_seems_endless_is_not_copied() -> None:
    endless = np.broadcast_to(np.zeros(3, np.uint8), (10**7, 10**6, 3))
    column = pd.Series([endless, PNG], dtype=object)

    with pytest.warns(RowErrorWarning):
        frame = column.vl.run(backend="echo", progress=False)

    assert frame["status"].tolist() == ["error", "ok"]
    assert "max_image_pixels" in frame["error"][0]


@pytest.mark.parametrize(
    "data",
    [TEXT.encode(), bytearray(TEXT.encode()), b"data:image/png;base64," + TEXT.encode(), base64.encodebytes(PNG)],
    ids=["bytes", "bytearray", "data", "lines"],
)
def test_base64_as_bytes_is_told_from_a_files_own_bytes(data: bytes) -> None:
    assert only(data).kind == "base64"
    assert only(data, "image_binary").kind == "bytes"


@pytest.mark.parametrize(
    ("address", "label"),
    [
        ("http:///user:secret@host/a.png", "http://…"),
        ("https://host/a.png;sig=secret", "https://host/a.png;…"),
        ("https://host/a.png;sig=secret/b", "https://host/a.png;…"),
        ("https://host/a;v1/b.png", "https://host/a;v1/b.png"),
    ],
)
def test_logins_and_signatures_in_odd_places_are_masked(address: str, label: str) -> None:
    assert only(address).label == label


def test_rows_share_a_fetch_only_where_their_images_are_equal() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    image = Image.fromarray(array)
    cells = ["a.png", "b.png", "http://a/1", "http://a/1?", PNG, PNG[:-1], TEXT, array, array.reshape(4, 2, 3), image]
    cells += [array[::-1], array.astype(np.int16), array.view("V3"), image.copy()]

    assert len({only(cell).key for cell in cells}) == len(cells)
    assert only(PNG).key == only(bytearray(PNG)).key
    assert only(array).key == only(np.asfortranarray(array)).key
    assert only(array[::-1]).key == only(array[::-1].copy()).key


# ------------------------------------------------------------------ secrets


SECRETS = ("hunter2", "deadbeef", "s3cr3t")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:hunter2@example.org/a.png", "https://***@example.org/a.png"),
        ("https://hunter2@example.org/a.png", "https://***@example.org/a.png"),
        ("https://me:hun@ter2hunter2@example.org/a.png", "https://***@example.org/a.png"),
        ("https://example.org:8080/a.png?X-Amz-Signature=deadbeef", "https://example.org:8080/a.png?…"),
        ("https://example.org/a.png#token=s3cr3t", "https://example.org/a.png"),
        ("s3://AK:hunter2@bucket/a.png?versionId=deadbeef", "s3://***@bucket/a.png?…"),
        ("https://me:hunter2/x@example.org/a.png", "https://…"),
        ("https://me:x#hunter2@example.org/a.png", "https://…"),
        ("https://me:hunter2?x@example.org/a.png", "https://…"),
        ("https://me:12/hunter2@example.org/a.png", "https://…"),
        ("https://[hunter2@example.org/a.png", "https://…"),
        ("example.org/a.png?X-Tos-Signature=deadbeef", "example.org/a.png?…"),
        ("//me:hunter2@example.org/a.png", "//***@example.org/a.png"),
        ("http:/me:hunter2@example.org/a.png", "http:/***@example.org/a.png"),
        ("file://me:hunter2@example.org/a.png", "file://***@example.org/a.png"),
    ],
)
def test_no_secret_is_in_a_label(address: str, shown: str) -> None:
    label = only(address).label

    assert label == shown
    assert not [secret for secret in SECRETS if secret in label]


@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/@someone/a@2x.png",
        "https://cdn.example.org/pkg@1.2.3/图.png",
        "a@2x.png",
        "why?.png",
        "C:\\me\\a@2x.png",
    ],
)
def test_labels_of_ordinary_addresses_stay_readable(address: str) -> None:
    assert only(address).label == address


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text())
def test_no_password_or_query_survives_masking(noise: str, path: str) -> None:
    secret = f"hunter2{noise}"

    assert "hunter2" not in redact_url(f"https://me:{secret}@example.org/{path.replace('hunter2', '')}?sig={secret}")


def test_labels_are_short_and_whole_characters() -> None:
    for address in ("\ud800.png", f"https://example.org/{'长' * 500}.png"):
        label = only(address).label
        label.encode()
        assert len(label) <= 120


@pytest.mark.parametrize("text", [":", "a:", "?", "@", ":@", "?=", "/:", "\\:@"])
def test_no_text_takes_long_to_be_named(text: str) -> None:
    started = time.perf_counter()
    for image_src_type in ("auto", "image_url"):
        with contextlib.suppress(RowError):
            classify("x" + text * 100_000, image_src_type)

    assert time.perf_counter() - started < 2, "a cell's time is bounded, whatever a stranger wrote in it"
