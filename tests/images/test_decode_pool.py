"""Decoding in a process of its own: what it costs is bounded, and what becomes of it is one image's affair."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from helpers.malformed_inputs import encoded, jpeg_of_scans, noise
from helpers.needs import need_format
from PIL import Image

from qwenvl_kit import Config, Control, RowErrorWarning
from qwenvl_kit.errors import RowError
from qwenvl_kit.images import ImageLoader, classify
from qwenvl_kit.images.decode import decode_resized
from qwenvl_kit.images.decode_pool import DecodePool
from qwenvl_kit.images.decode_process import DecodeProcess
from qwenvl_kit.images.decode_worker import max_memory
from qwenvl_kit.images.probe import probe
from qwenvl_kit.images.resize import Sizing
from qwenvl_kit.types import PatchGeometry

SIZING = Sizing.of(Config(), PatchGeometry(14, 2, 56 * 56, 10**6))
MOST = 89_478_485
ECHO = {"backend": "echo", "progress": False}


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    made = DecodePool(2)
    yield made
    made.close_idle()


def decoders() -> list[psutil.Process]:
    """Decoding processes of this one."""
    return [child for child in psutil.Process().children() if any("decode_worker" in word for word in child.cmdline())]


def decode(
    pool: DecodePool, data: bytes, timeout_s: float = 20.0, cancel: threading.Event | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    return pool.decode(
        data, SIZING, max_image_pixels=MOST, n_pixels=0, n_bytes=0, timeout_s=timeout_s, cancel=cancel
    )  # fmt: skip


@pytest.mark.parametrize(
    ("form", "feature"),
    [("PNG", "zlib"), ("TIFF", "zlib"), ("AVIF", "avif"), ("JPEG2000", "jpg_2000"), ("ICO", "zlib")],
)
def test_pixels_are_those_of_this_process(pool: DecodePool, form: str, feature: str) -> None:
    need_format(form, feature)
    data = encoded(noise(200, 150, 1), form)

    pixels, size = decode(pool, data)
    wanted, wanted_size = decode_resized(data, SIZING, max_image_pixels=MOST)

    assert size == wanted_size
    assert (pixels == wanted).all()


def test_a_process_serves_many_images_and_its_errors_are_this_ones(pool: DecodePool) -> None:
    good, broken = encoded(noise(40, 40, 0), "TIFF"), encoded(noise(40, 40, 0), "TIFF")[:60]
    first, _ = decode(pool, good)

    with pytest.raises(RowError) as caught:
        decode(pool, broken)
    again, _ = decode(pool, good)

    assert caught.value.stage == "decode"
    assert (first == again).all()
    assert len(decoders()) == 1


def test_decoding_that_takes_too_long_is_ended_and_the_next_one_served(pool: DecodePool) -> None:
    started = time.monotonic()
    with pytest.raises(RowError, match=r"Decoding took longer than decode_timeout_s=0\.2\. Raise"):
        decode(pool, jpeg_of_scans(3000), timeout_s=0.2)

    assert time.monotonic() - started < 15
    assert decode(pool, encoded(noise(40, 40, 0), "TIFF"))[1] == (40, 40)


def test_cancelling_ends_what_is_being_decoded_within_a_second(pool: DecodePool) -> None:
    cancel = threading.Event()
    data = jpeg_of_scans(3000)
    with ThreadPoolExecutor(1) as thread:
        under_way = thread.submit(decode, pool, data, 600.0, cancel)
        time.sleep(0.5)
        started = time.monotonic()
        cancel.set()
        with pytest.raises(RowError, match="cancelled"):
            under_way.result(timeout=20)

    assert time.monotonic() - started < 5


def test_a_decoder_that_crashes_is_that_images_error(pool: DecodePool) -> None:
    data = jpeg_of_scans(3000)
    with ThreadPoolExecutor(1) as thread:
        under_way = thread.submit(decode, pool, data, 600.0)
        while not decoders():
            time.sleep(0.01)
        time.sleep(0.3)
        decoders()[0].kill()
        with pytest.raises(RowError, match=r"its decoder crashed \(signal 9\)"):
            under_way.result(timeout=20)

    assert decode(pool, encoded(noise(40, 40, 0), "TIFF"))[1] == (40, 40)


@pytest.mark.skipif(sys.platform != "linux", reason="the system limits no memory of one process")
def test_memory_beyond_the_limit_is_that_images_error(pool: DecodePool) -> None:
    need_format("WebP", "webp")
    data = encoded(noise(1, 1, 0).resize((9000, 9000)), "WEBP", lossless=True, method=0)

    with pytest.raises(RowError) as caught:
        pool.decode(data, SIZING, max_image_pixels=MOST, n_pixels=81_000_000, n_bytes=8 * 81_000_000, timeout_s=30)

    assert caught.value.stage == "decode"
    assert decode(pool, encoded(noise(40, 40, 0), "TIFF"))[1] == (40, 40)


@pytest.mark.slow
def test_a_large_file_is_decoded_after_a_small_one() -> None:
    pool = DecodePool(1)
    try:
        for height, width in ((40, 40), (6000, 7600)):  # 137 MB, more than the memory that the first one may take
            data = encoded(Image.new("RGB", (width, height)), "BMP")
            n_pixels = width * height
            _, size = pool.decode(
                data, SIZING, max_image_pixels=MOST, n_pixels=n_pixels, n_bytes=8 * n_pixels, timeout_s=30
            )
            assert size == (height, width)
    finally:
        pool.close_idle()


@pytest.mark.skipif(sys.platform != "linux", reason="the system counts no peak of one process")
@pytest.mark.slow
@pytest.mark.parametrize(("mode", "most"), [("RGB", 440), ("L", 180)])
def test_the_largest_image_takes_little_more_than_its_own_pixels(mode: str, most: int) -> None:
    data = encoded(noise(64, 64, 0).convert(mode).resize((9459, 9459)), "JPEG")  # 341 or 85 MiB in Pillow
    pool = DecodePool(1)
    sizing = Sizing.of(Config(), PatchGeometry())  # 3584×3584 at most
    try:
        pool.decode(data, sizing, max_image_pixels=MOST, n_pixels=MOST, n_bytes=8 * MOST, timeout_s=60)
        (decoder,) = decoders()
        status = Path(f"/proc/{decoder.pid}/status").read_text()
    finally:
        pool.close_idle()

    assert int(status.split("VmHWM:")[1].split()[0]) < most * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="the system limits no memory of one process")
@pytest.mark.slow
def test_the_limit_of_an_image_does_not_depend_on_the_images_before_it(pool: DecodePool) -> None:
    def outcome(data: bytes) -> str:
        try:
            pool.decode(data, SIZING, max_image_pixels=MOST, n_pixels=MOST, n_bytes=14 * MOST, timeout_s=60)
        except RowError as error:
            return error.stage
        return "ok"

    soft = noise(4, 4, 0).resize((9459, 9459), Image.Resampling.BILINEAR)
    progressive = encoded(soft, "JPEG", progressive=True)  # takes 600 MiB
    large = encoded(soft.convert("CMYK"), "JPEG")

    assert [outcome(data) for data in (progressive, large, progressive)] == ["decode", "ok", "decode"]


@pytest.mark.slow
def test_a_size_that_the_caller_asks_for_has_room_beside_the_image() -> None:
    (source,) = classify(encoded(Image.new("RGB", (9000, 9000)), "JPEG"))
    loader = ImageLoader.of(Config().fetch, Sizing.of(Config(resized_height=8000, max_pixels=10**8), PatchGeometry()))
    try:
        assert loader.load(source).pixels.shape == (8008, 8008, 3)
    finally:
        loader.close_idle()


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells the memory of no process")
@pytest.mark.slow
def test_a_decoder_keeps_little_of_a_large_image() -> None:
    pool = DecodePool(1)
    try:
        for mode in ("L", "RGB"):
            data = encoded(noise(64, 64, 0).convert(mode).resize((9459, 9459)), "JPEG")
            pool.decode(data, SIZING, max_image_pixels=MOST, n_pixels=MOST, n_bytes=8 * MOST, timeout_s=60)
            (decoder,) = decoders()
            assert decoder.memory_info().rss < 100 * 2**20, mode
    finally:
        pool.close_idle()


def test_decoders_do_not_see_the_callers_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    process = DecodeProcess()
    time.sleep(0.3)  # its command line is empty while it starts
    try:
        (decoder,) = decoders()
        environment = Path(f"/proc/{decoder.pid}/environ").read_bytes()
    finally:
        process.stop()

    assert b"hunter2" not in environment


def test_a_bomb_holds_up_nobody_and_ctrl_c_ends_it() -> None:
    bomb = jpeg_of_scans(3000)
    cells = [bomb, bomb + b"\0", *(encoded(noise(40, 40, number), "PNG") for number in range(30))]
    cancel = threading.Event()
    seen: list[object] = []

    def count(result: object) -> None:
        seen.append(result)
        if len(seen) == 30:
            cancel.set()

    control = Control(cancel, on_result=count)
    started = time.monotonic()

    frame = pd.Series(cells).vl.run(control=control, decode_timeout_s=600.0, **ECHO)

    assert time.monotonic() - started < 30
    assert frame["status"].tolist() == ["cancelled"] * 2 + ["ok"] * 30


def test_no_process_is_left_after_a_run() -> None:
    pd.Series([encoded(noise(40, 40, number), "TIFF") for number in range(4)]).vl.run(**ECHO)

    assert not decoders()


def test_slow_rows_and_quick_ones_are_all_answered_in_order() -> None:
    forms = ["PNG", "TIFF", "JPEG", "ICO", "GIF", "TIFF"] * 5
    cells = [encoded(noise(40 + number, 40, number), form) for number, form in enumerate(forms)]
    cells[7] = cells[7][:50]

    with pytest.warns(RowErrorWarning):
        frame = pd.Series(cells).vl.run(**ECHO)

    assert [number for number, status in enumerate(frame["status"]) if status != "ok"] == [7]


@pytest.mark.skipif(sys.platform != "linux", reason="the system limits no memory of one process")
@pytest.mark.slow
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000"])
def test_the_memory_limit_by_the_header_is_enough_for_good_images(pool: DecodePool, form: str) -> None:
    for name, feature in (("AVIF", "avif"), ("WEBP", "webp"), ("JPEG2000", "jpg_2000")):
        if form == name:
            need_format(form, feature)
    for side in (8, 300, 2600):
        data = encoded(noise(side // 4, side // 4, 1).resize((side, side)), form)
        found = probe(data, max_image_pixels=MOST)
        n_pixels = side * side
        _, size = pool.decode(
            data,
            SIZING,
            max_image_pixels=MOST,
            n_pixels=n_pixels,
            n_bytes=found.bytes_per_pixel * n_pixels,
            timeout_s=30,
        )
        assert size == (side, side)


def test_a_small_image_may_take_less_memory_than_one_without_a_size() -> None:
    assert max_memory(1000, 12 * 100 * 100) < 128 * 2**20 < max_memory(1000, 0)
    assert max_memory(1000, 12 * 10**9) <= max_memory(1000, 0)  # a header alone opens no more
