"""Measure the pace of images over http, and the cost of a faulty server.

Run it by hand on a quiet machine: ``python tests/benchmarks/fetch_pace.py``. A server in a process of its own answers
20 ms late; in a second round, one answer in twenty is a 503 or is cut short. Prints the figures beside their
targets; exit status 1 for a missed target.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import multiprocessing
import random
import statistics
import time
from typing import Any

import pandas as pd
from PIL import Image

import qwenvl_kit  # noqa: F401  # registers Series.vl

LATENCY_S, FAULTY = 0.02, 0.05
WANTED_PER_S, WANTED_ATTEMPTS = 400, 1.2
ECHO = {"backend": "echo", "batch_size": 32, "progress": False}


def main() -> int:
    """Measure and print; return 1 for a missed target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    clean = [_round(asked.rows, 0.0, seed) for seed in range(asked.repeats)]
    faulty = [_round(asked.rows, FAULTY, seed) for seed in range(asked.repeats)]
    print(f"{asked.rows} images of 64×64 over loopback, each answer {LATENCY_S * 1000:g} ms late, {asked.repeats} runs")
    print(f"  images/s: {_spread([pace for pace, _, _ in clean])} (wanted: at least {WANTED_PER_S})")
    print(f"  rows that are not right: {sum(wrong for _, wrong, _ in clean)}")
    print(f"with {FAULTY:.0%} of answers 503 or cut short")
    print(f"  images/s: {_spread([pace for pace, _, _ in faulty])}")
    print(f"  rows that are not right: {sum(wrong for _, wrong, _ in faulty)} (wanted: 0)")
    attempts = [n / asked.rows for _, _, n in faulty]
    print(f"  requests per row: {_spread(attempts)} (wanted: at most {WANTED_ATTEMPTS})")
    is_fast = statistics.median(pace for pace, _, _ in clean) >= WANTED_PER_S
    is_right = not sum(wrong for _, wrong, _ in [*clean, *faulty])
    return 0 if is_fast and is_right and max(attempts) <= WANTED_ATTEMPTS else 1


def _round(n_rows: int, faulty: float, seed: int) -> tuple[float, int, int]:
    """Images per second, rows that are not right, and requests that the server saw."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(theirs, n_rows, faulty, seed), daemon=True)
    server.start()
    port = ours.recv()
    cells = pd.Series([f"http://127.0.0.1:{port}/{row}.png" for row in range(n_rows)])
    started = time.perf_counter()
    frame = cells.vl.run(prompt="What?", **ECHO)
    seconds = time.perf_counter() - started
    ours.send("count")
    n_requests = ours.recv()
    server.terminate()
    server.join()
    digests = [str(text).rpartition(" ")[2] for text in frame["text"]]
    n_wrong = int((frame["status"] != "ok").sum()) + n_rows - len(set(digests))  # each image is another one
    return n_rows / seconds, n_wrong, n_requests


def _serve(pipe: Any, n_rows: int, faulty: float, seed: int) -> None:
    asyncio.run(_Server(n_rows, faulty, seed).run(pipe))


class _Server:
    def __init__(self, n_rows: int, faulty: float, seed: int) -> None:
        self._files = [_png(row) for row in range(n_rows)]
        self._faulty, self._random, self._n_requests = faulty, random.Random(seed), 0

    async def run(self, pipe: Any) -> None:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, backlog=256)
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.get_running_loop().run_in_executor(None, pipe.recv)
        pipe.send(self._n_requests)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            self._n_requests += 1
            data = self._files[int(head.split(b" ", 2)[1].strip(b"/").removesuffix(b".png"))]
            await asyncio.sleep(LATENCY_S)
            fault = self._random.choice(["503", "short"]) if self._random.random() < self._faulty else ""
            status, body = ("503 Busy", b"") if fault == "503" else ("200 OK", data)
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode())
            writer.write(body[: len(body) // 2] if fault == "short" else body)
            await writer.drain()
            if fault == "short":
                break
        writer.close()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):  # the client has gone
        return b""


def _png(row: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (row % 256, row // 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def _spread(values: list[float]) -> str:
    numbers = sorted(values)
    return f"{statistics.median(numbers):.4g} (from {numbers[0]:.4g} to {numbers[-1]:.4g})"


if __name__ == "__main__":
    raise SystemExit(main())
