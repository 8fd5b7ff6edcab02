"""A grid over addresses holds no more files at a time than a run does, and ends while it fetches."""

from __future__ import annotations

import contextlib
import gc
import http.server
import io
import os
import struct
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest
from PIL import Image

import qwenvl_kit
from qwenvl_kit import Control

ECHO: dict[str, Any] = {"backend": "echo", "progress": False}
FILE_BYTES = 300_000
N_FILES = 100


def _padded_png(n_bytes: int) -> bytes:
    """A small image in a large file: a private chunk, which no reader looks into, takes the room."""
    file = io.BytesIO()
    Image.new("RGB", (28, 28), "red").save(file, "PNG")
    head, end = file.getvalue()[:-12], file.getvalue()[-12:]
    chunk = b"prVt" + os.urandom(n_bytes)
    return head + struct.pack(">I", n_bytes) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end


@contextlib.contextmanager
def _serving(body: bytes, wait_s: float = 0.0) -> Iterator[tuple[str, list[str], threading.Event]]:
    """Serve one file under every path; gives the address, the paths asked for, and an event at the first request."""
    asked: list[str] = []
    begun = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            begun.set()
            threading.Event().wait(wait_s)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked, begun
        server.shutdown()


def test_the_files_of_a_grid_are_not_all_held_in_memory() -> None:
    with _serving(_padded_png(FILE_BYTES)) as (address, asked, _):
        frame = pd.DataFrame({"image": [f"{address}/{number}" for number in range(N_FILES)]})
        frame.head(2).vl.compare("image", vary={"resized_height": [56]}, **ECHO)  # imports and pools
        asked.clear()
        gc.collect()
        tracemalloc.start()
        try:
            found = frame.vl.compare("image", vary={"resized_height": [56, 112]}, **ECHO)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert (found.frame["status"] == "ok").all()
    assert len(asked) == N_FILES, "each address is asked once, however many settings there are"
    assert peak < N_FILES * FILE_BYTES / 2


@pytest.mark.filterwarnings("ignore::qwenvl_kit.RowErrorWarning")
def test_a_grid_that_is_cancelled_while_it_fetches_asks_for_no_more() -> None:
    control = Control()
    with _serving(_padded_png(100), wait_s=0.5) as (address, asked, begun):
        frame = pd.DataFrame({"image": [f"{address}/{number}" for number in range(200)]})

        def cancel() -> None:
            begun.wait(30)
            control.cancel.set()

        threading.Thread(target=cancel, daemon=True).start()
        found = frame.vl.compare("image", vary={"resized_height": [56, 112]}, control=control, **ECHO)
        n_asked = len(asked)

    assert not found.complete
    assert n_asked < 60, "two rounds of as many requests as one host gets, at most"
    assert len(qwenvl_kit.last_run()) == len(found.frame) < 2 * len(frame)
