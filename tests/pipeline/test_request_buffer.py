"""Requests wait within bounds, in order, and their reader learns of the end."""

from __future__ import annotations

import threading

import pytest
from helpers.fake_backends import gray, within

from qwenvl_kit.pipeline.request_buffer import RequestBuffer
from qwenvl_kit.types import LoadedImage, Request

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
