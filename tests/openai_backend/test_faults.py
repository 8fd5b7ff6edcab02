"""Faults of a server in mid-run: the row waits for it, or gets the error; the other rows are untouched."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from helpers import openai_server
from helpers.openai_server import State, expected

from qwenvl_kit import Control, RowErrorWarning
from qwenvl_kit.openai_backend import retry

from .conftest import options
from .test_backend import image, images, run


@pytest.mark.parametrize("fault", ["429", "503", "502", "500", "cut", "drop", "429/1"])
def test_a_fault_that_passes_costs_no_row(server: State, fault: str) -> None:
    server.faults = [fault, "", fault]

    frame = run(server, images(6))

    assert frame["text"].tolist() == [expected("What?", one) for one in images(6)]
    assert len(server.bodies) == 8


def test_no_row_is_asked_before_the_time_that_the_server_names(server: State) -> None:
    server.faults = ["429/1"]
    started = time.monotonic()

    run(server, images(3), rows_in_flight=1)

    assert time.monotonic() - started >= 1


def test_a_time_beyond_the_rows_is_an_error_at_once(server: State) -> None:
    server.faults = ["503/3600"]
    started = time.monotonic()

    with pytest.warns(RowErrorWarning, match=r"in 3600 s \(Retry-After\), beyond request_timeout_s=20"):
        run(server, [image(1)], request_timeout_s=20)

    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("400", "HTTP status 400: status 400"),
        ("html", "answered with a web page"),
        ("broken", "answered with no JSON object"),
        ("empty", "has no choice"),
        ("no-choice", "has no choice"),
        ("refusal", "The model refused to answer: I will not."),
        ("refusal-plain", "The model refused to answer: I will not."),
        ("filter", "content filter"),
        ("error", "reports an error: the engine is gone"),
        ("huge", "exceeds 524288 bytes"),
        ("huge-stream", "exceeds 524288 bytes"),
        ("elsewhere", "neither the request nor the key follow"),
    ],
)
def test_a_fault_that_stays_is_one_rows_error(server: State, fault: str, told: str) -> None:
    server.faults = ["", fault]

    with pytest.warns(RowErrorWarning):
        frame = run(server, images(4), rows_in_flight=1)

    assert frame["status"].value_counts().to_dict() == {"ok": 3, "error": 1}
    assert frame["stage"].dropna().tolist() == ["generate"]
    assert told in frame["error"].dropna().item()


def test_a_row_that_breaks_every_connection_gives_up(server: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_MAX_S", 0.05)
    server.faults = ["drop"] * 8

    with pytest.warns(RowErrorWarning, match="broke off .*Gave up after 8 tries"):
        frame = run(server, images(2), rows_in_flight=1)

    assert sorted(frame["status"]) == ["error", "ok"]


def test_a_server_that_says_nothing_costs_the_rows_time_and_no_more(server: State) -> None:
    server.faults = ["silent"]
    started = time.monotonic()

    with pytest.warns(RowErrorWarning, match="did not answer within request_timeout_s=1"):
        frame = run(server, images(3), rows_in_flight=1, request_timeout_s=1)

    assert sorted(frame["status"]) == ["error", "ok", "ok"]
    assert time.monotonic() - started < 8


def test_a_stream_that_never_ends_costs_the_rows_time_and_no_more(server: State) -> None:
    server.piece_s = 0.2
    server.answer = "word " * 1000

    with pytest.warns(RowErrorWarning, match="did not answer within request_timeout_s=1"):
        frame = run(server, [image(1)], request_timeout_s=1, max_caption_length=2000)

    assert frame["status"].tolist() == ["error"]


def test_a_run_without_its_server_ends() -> None:
    """The rows in flight wait for its return; the others do not wait again."""
    state = State()
    listening = openai_server.listening(state)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()

    def leave(_: object) -> None:
        if not state.is_gone:
            state.is_gone = True
            listening.shutdown()
            listening.server_close()

    started = time.monotonic()
    with pytest.warns(RowErrorWarning, match="No server answers"):
        frame = run(state, images(40), rows_in_flight=2, request_timeout_s=2, control=Control(on_result=leave))

    assert frame["status"].value_counts()["error"] > 30
    assert time.monotonic() - started < 20


@contextlib.contextmanager
def processes(port: int, n: int, seconds: float) -> Iterator[list[float]]:
    """Run a server in a process, and kill it every few seconds; it is back at once."""
    over, killed = threading.Event(), list[float]()
    command = [sys.executable, "-m", "helpers.openai_server", str(port), "0.002"]

    def begin() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, cwd=Path(openai_server.__file__).parents[1], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    def kill_again_and_again(process: subprocess.Popen[bytes]) -> None:
        while len(killed) < n and not over.wait(seconds):
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed.append(time.monotonic())
            process = begin()
        over.wait()
        process.kill()
        process.wait()

    thread = threading.Thread(target=kill_again_and_again, args=(begin(),))
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
def test_a_server_that_is_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    cells = [image(n % 256, 28 * (2 + n // 256)) for n in range(500)]
    asked = options(State(port=port), store=str(tmp_path / "answers.db"), prompt="What?", rows_in_flight=8)

    with processes(port, n=20, seconds=0.4) as killed:
        frame = pd.DataFrame({"image": cells}).vl.run("image", **asked)
        while len(killed) < 20 and (tmp_path / "answers.db").exists():
            again = pd.DataFrame({"image": cells}).vl.run("image", **asked)
            assert again["cached"].all()
            time.sleep(0.2)

    assert frame["text"].tolist() == [expected("What?", one) for one in cells]
    assert frame["status"].eq("ok").all()
