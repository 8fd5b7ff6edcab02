"""Requests wait within bounds, in order, and their reader learns of the end."""

from __future__ import annotations

import threading

import pytest
from helpers.fake_backends import gray, within

from qwenvl_kit.images.decode_worker import max_memory
from qwenvl_kit.pipeline.request_buffer import MAX_BATCH_BYTES, RequestBuffer, max_waiting_bytes
from qwenvl_kit.types import LoadedImage, PatchGeometry, Request

N_BYTES = gray(0).nbytes


def request(row: int) -> Request:
    image = LoadedImage(gray(row % 256), str(row), (56, 56))
    return Request(row, (image,), "What?", None, None, 8)


@pytest.mark.parametrize("bound", [{"max_bytes": 20 * N_BYTES}, {"max_requests": 20}], ids=["bytes", "number"])
def test_requests_wait_within_bounds_for_a_slow_reader(bound: dict[str, int]) -> None:
    buffer = RequestBuffer(threading.Event(), **bound)
    writers = [threading.Thread(target=lambda: [buffer.put(request(row)) for row in range(50)]) for _ in range(4)]
    for writer in writers:
        writer.start()
    n_read, most = 0, 0
    while n_read < 200:
        most = max(most, buffer.n_bytes)
        n_read += len(within(30, lambda: buffer.get(3, block=True)) or [])
    for writer in writers:
        writer.join(30)

    assert most <= 20 * N_BYTES
    assert buffer.n_bytes == 0


def test_a_batch_holds_at_least_one_request_and_no_more_bytes_than_allowed() -> None:
    buffer = RequestBuffer(threading.Event(), max_batch_bytes=2 * N_BYTES + 1)
    for row in range(3):
        buffer.put(request(row))

    assert [one.row for one in buffer.get(9, block=True) or []] == [0, 1]
    assert [one.row for one in buffer.get(9, block=False) or []] == [2]
    assert buffer.get(9, block=False) == []


def test_a_request_that_would_exceed_the_bound_waits_and_one_beyond_it_is_taken_alone() -> None:
    buffer = RequestBuffer(threading.Event(), max_bytes=2 * N_BYTES - 1)
    buffer.put(request(0))
    writer = threading.Thread(target=lambda: buffer.put(request(1)))
    writer.start()
    writer.join(0.3)
    assert writer.is_alive()

    assert len(buffer.get(9, block=True) or []) == 1
    writer.join(30)
    assert buffer.n_bytes == N_BYTES
    tiny = RequestBuffer(threading.Event(), max_bytes=1)
    within(30, lambda: tiny.put(request(0)))


def test_a_large_image_is_decoded_once_half_of_the_room_is_free_and_no_one_fills_it_meanwhile() -> None:
    cancel = threading.Event()
    buffer = RequestBuffer(cancel, max_bytes=4 * N_BYTES)
    for row in range(3):
        buffer.put(request(row))
    within(30, lambda: buffer.wait_for_room(is_large=False))
    large = threading.Thread(target=lambda: buffer.wait_for_room(is_large=True))
    large.start()
    large.join(0.3)
    other = threading.Thread(target=lambda: buffer.put(request(3)))
    other.start()
    other.join(0.3)
    assert large.is_alive()
    assert other.is_alive(), "small images went first for ever"

    buffer.get(1, block=False)
    large.join(30)
    other.join(30)
    assert not large.is_alive()
    assert buffer.n_bytes == 3 * N_BYTES
    buffer.put(request(4))
    threading.Timer(0.1, cancel.set).start()
    within(30, lambda: buffer.wait_for_room(is_large=True))


def test_all_that_a_run_on_two_cpus_holds_at_once_is_less_than_600_MB() -> None:
    decoder = 35 * 2**20 + max_memory(2**15, 12 * 89_478_485)  # its libraries, and what a small file may take
    largest = 3 * PatchGeometry().max_pixels
    # While a large image is decoded, half of the room is filled, and an image from before it comes.
    waiting = max(max_waiting_bytes(2), max_waiting_bytes(2) // 2 + largest)
    batch = max(MAX_BATCH_BYTES, largest)

    assert decoder + waiting + batch < 600e6


def test_the_reader_learns_of_the_end_of_a_failure_and_of_a_cancellation() -> None:
    cancel = threading.Event()
    closed, broken, cancelled = (RequestBuffer(cancel) for _ in range(3))
    closed.put(request(0))
    closed.close()
    broken.fail(OSError("the disk is gone"))

    assert len(closed.get(9, block=True) or []) == 1
    assert closed.get(9, block=True) is None
    assert not closed.wait()
    with pytest.raises(OSError, match="gone"):
        broken.get(1, block=False)
    threading.Timer(0.1, cancel.set).start()
    assert within(30, lambda: cancelled.get(1, block=True)) is None
