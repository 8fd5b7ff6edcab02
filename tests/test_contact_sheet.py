"""``df.vl.show``: thumbnails, bounded, and nobody's script runs."""

from __future__ import annotations

import base64
import functools
import inspect
import io
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.fake_backends import gray
from PIL import Image

from qwenvl_kit import ColumnNotFound, Config, ConfigError, UnknownOption, thumbnails
from qwenvl_kit.contact_sheet import SHOW_OPTIONS, find_image_column
from qwenvl_kit.images import ImageLoader
from qwenvl_kit.options import FetchOptions
from qwenvl_kit.thumbnails import Thumbnailer, together


def png(pixels: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (900, 700, 3), dtype=np.uint8)


def test_the_column_of_images_is_found_and_the_others_are_written_below() -> None:
    df = pd.DataFrame({"note": ["first", "second"], "photo": [None, gray(3)]})
    shown = df.vl.show()

    assert shown.html.count("<img") == 1
    assert "no image" in shown.html
    assert "second" in shown.html
    assert (shown.n_shown, shown.n_rows) == (2, 2)


def test_captions_labels_and_names_are_escaped_also_in_the_alternative_text() -> None:
    evil = "\"><script>alert('x')</script>"
    df = pd.DataFrame({"image": [gray(1), evil], evil: [evil, evil]}, index=[evil, "b"])

    page = df.vl.show("image").html

    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 5
    assert 'alt="row &#34;&gt;' in page


def test_rows_and_bytes_are_bounded_and_the_page_says_so() -> None:
    df = pd.DataFrame({"image": [noise(seed) for seed in range(30)]})

    by_rows, by_bytes = df.vl.show(n_rows=5), df.vl.show(max_bytes=60_000)

    assert "5 of 30 rows are shown" in by_rows.html
    assert 0 < by_bytes.n_shown < 24
    assert len(by_bytes.html.encode()) < 62_000
    assert "the limit of 60000 bytes was reached" in by_bytes.html


def test_a_broken_image_says_why_beside_the_others() -> None:
    page = pd.DataFrame({"image": [b"not an image", gray(1), "nowhere.png"]}).vl.show("image").html

    assert page.count("<img") == 1
    assert "decode: " in page
    assert "fetch: " in page


def test_a_frame_without_images_says_how_to_name_the_column() -> None:
    with pytest.raises(ColumnNotFound, match=r"Name one with df.vl.show\('column'\). The frame has: 'text'"):
        pd.DataFrame({"text": ["word"]}).vl.show()


def test_half_characters_and_control_characters_are_shown_with_a_replacement() -> None:
    odd = "a\udcff\x00b"
    index = pd.Index([odd], dtype=object)
    df = pd.DataFrame({"image": [gray(1)], "odd": pd.Series([odd], dtype=object, index=index)}, index=index)
    df.columns = pd.Index(["image", odd], dtype=object)
    page = df.vl.show("image").html
    page.encode()
    assert page.count("a��b") >= 3


class Unwritable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_captions_that_cannot_be_written_or_are_long_do_not_end_the_sheet() -> None:
    df = pd.DataFrame({"image": [gray(1)], "odd": [Unwritable()], "bytes": [bytes(10_000_000)]})
    page = df.vl.show("image").html
    assert "(Unwritable without a text: RuntimeError)" in page
    assert "(10000000 bytes)" in page
    assert len(page) < 20_000


@pytest.mark.parametrize(
    "cell",
    [
        {"bytes": png(gray(1)), "path": None},
        {"bytes": None, "path": "a.png"},
        base64.b64encode(png(gray(1))).decode(),
        "hf://datasets/a/b",
        "gs://bucket/key",
        "s3a://bucket/key",
        [{"bytes": png(gray(1))}],
        np.array(["a.png"], dtype=object),
    ],
    ids=lambda cell: str(cell)[:20],
)
def test_every_form_of_image_is_recognised(cell: object) -> None:
    df = pd.DataFrame({"note": ["words, and more of them", "Qk is short"], "image": pd.Series([None, cell])})
    assert find_image_column(df) == 1


def test_images_are_read_under_the_limits_that_show_was_given(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(noise(0)))
    df = pd.DataFrame({"image": [str(path)]})

    assert "<img" in df.vl.show().html
    assert "max_image_bytes=1000" in df.vl.show(max_image_bytes=1000).html
    assert "max_image_pixels=1000" in df.vl.show(max_image_pixels=1000).html
    assert "local_paths=False" in df.vl.show(local_paths=False).html
    assert "image_src_type=" in df.vl.show(image_src_type="image_binary").html


def test_show_asks_no_private_host_where_it_may_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/secret.png"
        page = pd.DataFrame({"image": [url]}).vl.show(allow_private_hosts=False).html
        with pytest.raises(TimeoutError):
            server.accept()
    assert "allow_private_hosts" in page


def test_show_spells_its_options_out_and_refuses_others() -> None:
    df = pd.DataFrame({"image": [gray(1)]})
    assert set(SHOW_OPTIONS) < set(inspect.signature(df.vl.show).parameters)
    assert "model_name" not in inspect.signature(df.vl.show).parameters
    with pytest.raises(UnknownOption, match="Did you mean 'timeout_s'"):
        df.vl.show(timeouts=1)
    with pytest.raises(UnknownOption, match=r"show\(\) has no option 'model_name'"):
        df.vl.show(model_name="demo")
    with pytest.raises(ConfigError, match="timeout_s"):
        df.vl.show(timeout_s=-1)


@pytest.mark.parametrize("error", [RuntimeError("boom"), MemoryError(), ZeroDivisionError()])
def test_whatever_a_library_raises_becomes_a_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(ImageLoader, "load", broken)
    thumbnailer = Thumbnailer.of(FetchOptions())
    assert thumbnailer.thumbnail(gray(1)).startswith("decode: ")
    monkeypatch.undo()
    monkeypatch.setattr(thumbnails, "jpeg_uri", broken)
    assert thumbnailer.thumbnail(gray(1)).startswith("resize: ")
    monkeypatch.undo()
    assert thumbnailer.thumbnail(type("Lazy", (), {"__array__": broken})()).startswith("fetch: ")


def test_thumbnails_together_take_no_longer_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    load = ImageLoader.load

    def slow(loader: ImageLoader, source: Any) -> Any:
        if source.kind == "path":
            release.wait(20)
        return load(loader, source)

    monkeypatch.setattr(ImageLoader, "load", slow)
    maker = Thumbnailer.of(Config(timeout_s=1))
    started = time.monotonic()
    cells = [gray(1), *["slow.png"] * 60]
    found = together([functools.partial(maker.thumbnail, cell) for cell in cells], within_s=1)
    took = time.monotonic() - started
    release.set()

    assert took < 5
    assert (found[0] or "").startswith("data:image/jpeg")
    assert found[1:] == [None] * 60
    assert "slow.png: Not fetched within timeout_s=1" in maker.late("slow.png", 1)
    assert "slow.png: Not loaded within 0.5 s" in maker.late("slow.png", 0.5)


def test_captions_may_be_tuples_that_are_labels() -> None:
    df = pd.DataFrame({("img", "front"): [gray(1)], ("text", "q"): ["What is it?"], ("text", "a"): ["A ring."]})
    page = df.vl.show(("img", "front"), ("text", "q")).html
    assert "What is it?" in page
    assert "A ring." not in page
    assert df.vl.show(captions=[("text", "a"), ("text", "q")]).html.count("<dt>") == 3
    assert df.vl.show().html.count("<dt>") == 3
