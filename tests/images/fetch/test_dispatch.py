"""Bytes from paths, base64 and stores of objects: what is read, what is refused, and what is told."""

from __future__ import annotations

import base64
import builtins
import contextlib
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.classify import classify
from qwenvl_kit.images.fetch import FetchLimits, fetch
from qwenvl_kit.images.fetch.dispatch import is_unchanged
from qwenvl_kit.types import ImageSource

LIMITS = FetchLimits(timeout_s=5, max_image_bytes=1000, allow_private_hosts=True)
STRICT = FetchLimits(timeout_s=5, max_image_bytes=1000, allow_private_hosts=False)


def source(cell: object, image_src_type: Any = "auto") -> ImageSource:
    (found,) = classify(cell, image_src_type)
    return found


def read(cell: object, image_src_type: Any = "auto", limits: FetchLimits = LIMITS) -> bytes:
    return fetch(source(cell, image_src_type), limits).data


def error_message(cell: object, image_src_type: Any = "auto", limits: FetchLimits = LIMITS) -> str:
    with pytest.raises(RowError) as caught:
        read(cell, image_src_type, limits)
    assert caught.value.stage == "fetch"
    return caught.value.message


# ------------------------------------------------------------------ base64


@st.composite
def dressed(draw: st.DrawFn) -> tuple[bytes, str]:
    """Bytes, and their base64 in some combination of all its dresses."""
    data = draw(st.binary(min_size=1, max_size=200))
    encode = draw(st.sampled_from([base64.b64encode, base64.urlsafe_b64encode]))
    text = encode(data).decode()
    if draw(st.booleans()):
        text = text.rstrip("=")
    if draw(st.booleans()):
        width = draw(st.integers(1, 80))
        text = draw(st.sampled_from(["\n", "\r\n", " ", "\t"])).join(
            text[at : at + width] for at in range(0, len(text), width)
        )
    if draw(st.booleans()):
        kind = draw(st.sampled_from(["", "image/png", "image/svg+xml;charset=utf-8", "IMAGE/JPEG;name=a.jpg"]))
        if draw(st.booleans()):
            text = text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3d")
        text = f"{draw(st.sampled_from(['data:', 'DATA:']))}{kind};{draw(st.sampled_from(['base64', 'BASE64']))},{text}"
    around = st.sampled_from(["", " ", "\n"])
    return data, draw(around) + text + draw(around)


@given(dressed())
def test_base64_is_read_in_every_combination_of_its_dresses(pair: tuple[bytes, str]) -> None:
    data, text = pair

    assert read(text, "image_base64") == data
    if len(text.strip()) >= 16:
        assert read(text.encode(), "image_base64") == data


def test_a_data_uri_without_base64_is_unquoted() -> None:
    assert read("data:image/gif,GIF89a%00%ff+") == b"GIF89a\x00\xff+"
    assert read("data:,图") == "图".encode()


@pytest.mark.parametrize(
    "text",
    ["!!!", "AAA*", "A", "AAAAA", "图片", "AA=A", "data:image/png;base64,***", "data:image/png;base64", "\ud800AAA"],
    ids=ascii,
)
def test_what_is_no_base64_is_told(text: str) -> None:
    assert "base64" in error_message(text, "image_base64")


@given(st.text(st.characters(), max_size=30))
def test_no_text_breaks_more_than_its_row(text: str) -> None:
    for whole in (text, f"data:{text}", f"data:,{text}", f"data:;base64,{text}"):
        if whole.strip() and "://" not in whole:
            with contextlib.suppress(RowError):  # anything else fails here
                read(whole, "image_base64")


@pytest.mark.parametrize("n_bytes", [999, 1000, 1001, 1002, 1003])
@pytest.mark.parametrize("form", ["base64", "wrapped", "data", "quoted", "bytes"])
def test_the_limit_on_bytes_counts_the_images_own_bytes(form: str, n_bytes: int) -> None:
    data = bytes(n_bytes)
    text = base64.b64encode(data).decode()
    cells: dict[str, tuple[object, Any]] = {
        "base64": (text, "image_base64"),
        "wrapped": ("\n".join(text), "image_base64"),
        "data": (f"data:image/png;base64,{text}", "image_base64"),
        "quoted": ("data:image/png," + "%00" * n_bytes, "image_base64"),
        "bytes": (data, "image_binary"),
    }

    if n_bytes <= 1000:
        assert read(*cells[form]) == data
    else:
        assert f"of {n_bytes} bytes exceeds max_image_bytes=1000" in error_message(*cells[form])


# ------------------------------------------------------------------ files


@pytest.mark.parametrize("name", ["a.png", "图片 ①.png", "a%20b.png", "a#b?.png", "é.png", "~.png"])
def test_a_file_is_read_by_its_path_and_its_uri(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"data")

    assert read(str(path)) == read(path) == read(path.as_uri()) == b"data"
    assert read(path.as_uri().replace("file://", "FILE://")) == b"data"
    assert read(path.as_uri().replace("file://", "file://localhost")) == b"data"


def test_a_relative_path_and_a_home_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    assert read("a.png") == read("./a.png") == read("~/a.png") == b"data"


def test_a_missing_file_says_from_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    message = error_message("missing.png")

    assert "missing.png: The file does not exist" in message
    assert str(tmp_path) in message


@pytest.mark.parametrize("address", ["file://[", "a\x00b.png", "x" * 5000 + ".png", "file:///%00"], ids=ascii)
def test_a_path_that_can_be_none_is_told(address: str) -> None:
    assert error_message(address, "image_url")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_folders_and_pipes_are_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)

    assert "Not a regular file" in error_message(str(tmp_path))
    assert "Not a regular file" in error_message(str(pipe))


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"data")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(builtins, "open", denied)

    assert "Permission denied" in error_message(str(path))


def test_too_large_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(bytes(1001))

    assert "of 1001 bytes exceeds max_image_bytes=1000" in error_message(str(path))


def test_a_file_is_unchanged_until_it_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"data")
    version = fetch(source(str(path)), LIMITS).version
    assert version is not None

    assert is_unchanged(source(str(path)), version, LIMITS)
    path.write_bytes(b"other data")
    assert not is_unchanged(source(str(path)), version, LIMITS)
    path.unlink()
    assert not is_unchanged(source(str(path)), version, LIMITS)


# ------------------------------------------------------------------ stores of objects

WITH_MEMORY = dataclasses.replace(LIMITS, extra_schemes=("memory",))


@pytest.fixture
def memory() -> Iterator[Any]:
    """An fsspec store that needs no network."""
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    with files.open("/bucket/图.png", "wb") as file:
        file.write(b"data")
    yield files
    files.store.clear()


@pytest.mark.usefixtures("memory")
def test_an_object_is_read_through_fsspec() -> None:
    assert read("memory://bucket/图.png", limits=WITH_MEMORY) == b"data"


@pytest.mark.usefixtures("memory")
def test_a_missing_object_is_told() -> None:
    assert (
        error_message("memory://bucket/none.png", limits=WITH_MEMORY)
        == "memory://bucket/none.png: Cannot read the image: not found."
    )


def test_too_large_an_object_is_not_read_to_its_end(memory: Any) -> None:
    with memory.open("/bucket/large.png", "wb") as file:
        file.write(bytes(5000))

    assert "max_image_bytes=1000" in error_message("memory://bucket/large.png", limits=WITH_MEMORY)


@pytest.mark.usefixtures("memory")
def test_a_store_that_hangs_meets_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    done = threading.Event()
    monkeypatch.setattr(fsspec, "filesystem", lambda *_, **__: done.wait(10))
    started = time.monotonic()

    message = error_message("memory://bucket/a.png", limits=dataclasses.replace(WITH_MEMORY, timeout_s=0.1))

    done.set()
    assert "timeout_s=0.1" in message
    assert time.monotonic() - started < 5


def test_an_extra_scheme_that_nothing_reads_says_so() -> None:
    pytest.importorskip("fsspec")
    limits = dataclasses.replace(LIMITS, extra_schemes=("gopher",))

    assert "gopher" in error_message("gopher://example.org/a.png", limits=limits)


@pytest.mark.parametrize(
    "scheme",
    [
        "ftp",
        "sftp",
        "webhdfs",
        "smb",
        "gopher",
        "memory",
        "reference",
        "dir",
        "zip",
        "tar",
        "filecache",
        "github",
        "lfs",
    ],
)
@pytest.mark.parametrize("limits", [LIMITS, STRICT], ids=["any", "no-private-hosts"])
def test_schemes_off_the_list_are_refused_and_the_option_is_named(
    scheme: str, limits: FetchLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)  # nothing may be opened

    message = error_message(f"{scheme}://127.0.0.1/a.png", limits=limits)

    assert f"{scheme}:// URLs are not read" in message
    assert f"extra_schemes=['{scheme}']" in message


@pytest.mark.parametrize(
    ("address", "package", "extra"),
    [("s3://bucket/a.png", "s3fs", "s3"), ("tos://bucket/a.png", "tos", "tos"), ("gs://bucket/a", "gcsfs", "gs")],
)
def test_a_missing_package_names_the_extra_that_brings_it(
    address: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    assert f"pip install 'qwenvl_kit[{extra}]'" in error_message(address)


@pytest.mark.parametrize(
    ("address", "package", "variable"),
    [("s3://bucket/a.png", "s3fs", "AWS_ACCESS_KEY_ID"), ("tos://bucket/a.png", "tos", "TOS_ACCESS_KEY")],
)
def test_missing_credentials_say_what_to_set(
    address: str, package: str, variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip(package)
    for name in [name for name in os.environ if name.startswith(("AWS_", "TOS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # the client would ask the network for keys
    monkeypatch.setenv("HOME", str(tmp_path))

    assert f"no credentials; set {variable}" in error_message(address)


@pytest.mark.usefixtures("memory")
def test_a_clients_message_is_not_repeated_since_it_may_hold_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    class EndpointError(Exception):
        pass

    def fail(*_: object, **__: object) -> None:
        raise EndpointError("https://host/?X-Amz-Signature=deadbeef key=hunter2")

    monkeypatch.setattr(fsspec, "filesystem", fail)

    assert (
        error_message("memory://bucket/a.png?sig=s3cr3t", limits=WITH_MEMORY)
        == "memory://bucket/a.png?…: Cannot read the image: EndpointError."
    )
