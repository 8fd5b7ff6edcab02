"""Measure what asking a server costs this side: CPU of a row beyond its body, and memory of requests in flight.

The server stands in another process, and answers without a model: ``python tests/benchmarks/server_client.py``.
"""

from __future__ import annotations

import argparse
import gc
import http.server
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.openai_server import MODEL, _event, listening

from qwenvl_kit import Config
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.inference.backend import RunControl
from qwenvl_kit.openai_backend.parameters import parameters
from qwenvl_kit.openai_backend.request import request_body
from qwenvl_kit.types import LoadedImage, Request


def canned(n_tokens: int) -> list[bytes]:
    """A stream of `n_tokens`, as vLLM sends it: an event a token, a chunk an event."""
    usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": n_tokens}})
    events = [_event({"content": " word"}) for _ in range(n_tokens)]
    lines = [f"data: {event}\n\n".encode() for event in (*events, _event({"content": ""}, "stop"), usage, "[DONE]")]
    return [b"%x\r\n%b\r\n" % (len(line), line) for line in [*lines, b""]]


class Handler(http.server.BaseHTTPRequestHandler):
    """Reads a body and sends the canned answer, once `together` requests are there."""

    protocol_version = "HTTP/1.1"
    answer: list[bytes]
    piece_s: float
    gate: threading.Barrier | None

    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": MODEL}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        left, is_probe = int(self.headers["Content-Length"]), False
        while left:
            data = self.rfile.read(min(left, 1 << 16))
            left -= len(data)
            is_probe = is_probe or b'"text": "?"' in data
        if self.gate is not None and not is_probe:
            self.gate.wait(400)
            time.sleep(1)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if not self.piece_s:
            self.wfile.write(b"".join(self.answer))
            return
        for piece in self.answer:
            self.wfile.write(piece)
            time.sleep(self.piece_s)

    def log_message(self, *_: object) -> None:
        pass


def serve(port: int, n_tokens: int, together: int, piece_s: float) -> None:
    """Serve until killed."""
    from helpers import openai_server

    gate = threading.Barrier(together) if together else None
    openai_server.Handler = type(  # type: ignore[misc]
        "Canned", (Handler,), {"answer": canned(n_tokens), "gate": gate, "piece_s": piece_s}
    )
    with listening(openai_server.State(port=port)) as alone:
        alone.serve_forever(0.05)


class Queue:
    """Requests that are ready."""

    def __init__(self, requests: Iterator[Request]) -> None:
        self._requests = requests

    def get(self, n: int, *, block: bool) -> list[Request] | None:
        found = next(self._requests, None)
        return None if found is None else [found]


def requests(n: int, side: int, *, own_pixels: bool) -> list[Request]:
    """Rows of one image, or of images that each have their own memory."""
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    images = [LoadedImage(pixels.copy() if own_pixels else pixels, str(n), (side, side)) for n in range(n)]
    return [Request(row, (image,), "What?", None, None, 256) for row, image in enumerate(images)]


def rss() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def ask(
    n_rows: int, side: int, in_flight: int, n_tokens: int, *, together: int = 0, piece_s: float = 0
) -> tuple[float, float, int]:
    """Seconds of CPU and of time for all rows, and the most memory above that before the run."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(
        target=serve, args=(port, n_tokens, together, piece_s), daemon=True
    )
    process.start()
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            time.sleep(0.1)
    config = Config(
        backend="openai", base_url=f"http://127.0.0.1:{port}/v1", model_name=MODEL, rows_in_flight=in_flight
    )
    spec = make_spec(config)
    rows = requests(n_rows, side, own_pixels=bool(together))
    gc.collect()
    before, most, over = rss(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            most[0] = max(most[0], rss() - before)

    watcher = threading.Thread(target=watch)
    if together:
        watcher.start()
    cpu, started = time.process_time(), time.perf_counter()
    results = list(spec.load().generate(Queue(iter(rows)), spec.resolved, RunControl()))
    cpu, took = time.process_time() - cpu, time.perf_counter() - started
    over.set()
    if together:
        watcher.join()
    process.kill()
    process.join()
    assert [result.status for result in results] == ["ok"] * n_rows, results[0]
    assert sum(result.new_tokens or 0 for result in results) == n_rows * n_tokens
    return cpu, took, most[0]


def building(n_rows: int, side: int) -> float:
    """Seconds of CPU to build the bodies alone."""
    config = Config(backend="echo")
    resolved = make_spec(config).resolved
    started = time.process_time()
    for request in requests(n_rows, side, own_pixels=False):
        request_body(MODEL, parameters(resolved, 256, None), request, "png")
    return time.process_time() - started


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="*", default=[1, 32, 128])
    parser.add_argument("--piece-s", type=float, default=0, help="seconds after each event, which then comes alone")
    parser.add_argument("--sides", type=int, nargs="*", default=[448, 1008])
    parsed = parser.parse_args()
    for n_tokens in parsed.tokens:
        found = []
        for _ in range(parsed.rounds):
            cpu, took, _ = ask(parsed.rows, 56, 16, n_tokens, piece_s=parsed.piece_s)
            found.append((1000 * (cpu - building(parsed.rows, 56)) / parsed.rows, parsed.rows / took))
        over, pace = min(found)
        print(f"{n_tokens:4} tokens: {over:.2f} ms CPU a row over building it, {pace:.0f} rows/s", flush=True)
    for side in parsed.sides:
        _, _, most = ask(256, side, 256, 32, together=256)
        print(f"256 in flight, {side}×{side} pixels: {most / 1e6:.0f} MB over the pictures", flush=True)


if __name__ == "__main__":
    main()
