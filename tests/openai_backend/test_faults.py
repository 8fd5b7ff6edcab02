"""Faults of a server in mid-run: the row waits for it, or gets the error; the other rows are untouched."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from helpers import openai_server
from helpers.openai_server import State, expected

from qwenvl_kit import Control, RowErrorWarning
from qwenvl_kit.openai_backend import retry

from .conftest import options
from .test_backend import image, images, run


@pytest.mark.parametrize(
    "fault", ["429", "503", "502", "500", "cut", "drop", pytest.param("429/1", marks=pytest.mark.slow)]
)
def test_a_fault_that_passes_costs_no_row(server: State, fault: str) -> None:
    server.faults = [fault, "", fault]

    frame = run(server, images(6))

    assert frame["text"].tolist() == [expected("What?", one) for one in images(6)]
    assert len(server.bodies) == 8


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_server_that_says_nothing_costs_the_rows_time_and_no_more(server: State) -> None:
    server.faults = ["silent"]
    started = time.monotonic()

    with pytest.warns(RowErrorWarning, match="did not answer within request_timeout_s=1"):
        frame = run(server, images(3), rows_in_flight=1, request_timeout_s=1)

    assert sorted(frame["status"]) == ["error", "ok", "ok"]
    assert time.monotonic() - started < 8


@pytest.mark.slow
def test_a_stream_that_never_ends_costs_the_rows_time_and_no_more(server: State) -> None:
    server.piece_s = 0.2
    server.answer = "word " * 1000

    with pytest.warns(RowErrorWarning, match="did not answer within request_timeout_s=1"):
        frame = run(server, [image(1)], request_timeout_s=1, max_caption_length=2000)

    assert frame["status"].tolist() == ["error"]


@pytest.mark.slow
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


@pytest.mark.parametrize("fault", ["503", "503/30", "silent"])
def test_rows_that_wait_for_a_server_are_cancelled_and_have_no_error(server: State, fault: str) -> None:
    control = Control(on_result=lambda _: control.cancel.set())
    server.faults = ["", *[fault] * 200]

    frame = run(server, images(20), control=control, rows_in_flight=8)

    assert frame["status"].value_counts().to_dict() == {"ok": 1, "cancelled": 19}
    assert frame["error"].isna().all()


class Killed:
    """A server in a process of its own, which is killed after every so many results and is back soon."""

    def __init__(self, every: int) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["helpers.openai_server"])
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            self.port = unused.getsockname()[1]
        self._every, self._n_results, self.n_kills = every, 0, 0
        self._start()

    def count(self, _: object) -> None:
        self._n_results += 1
        if self._n_results % self._every == 0 and self.n_kills < 20:
            self.stop()
            self.n_kills += 1
            self._start()

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()

    def _start(self) -> None:
        self._process = self._context.Process(target=openai_server.serve_alone, args=(self.port, 0.01), daemon=True)
        self._process.start()

    def wait(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no forkserver")
def test_a_server_that_is_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    """Each row is answered once, and stored answers are not asked again."""
    cells = [image(n % 256, 28 * (2 + n // 256)) for n in range(500)]
    server = Killed(every=24)
    server.wait()
    asked = options(State(port=server.port), store=str(tmp_path / "answers.db"), prompt="What?", rows_in_flight=8)
    try:
        frame = pd.DataFrame({"image": cells}).vl.run("image", control=Control(on_result=server.count), **asked)
        server.wait()
        again = pd.DataFrame({"image": cells}).vl.run("image", **asked)
    finally:
        server.stop()

    assert server.n_kills == 20
    assert frame["text"].tolist() == [expected("What?", one) for one in cells]
    assert not frame["cached"].any()
    assert again["cached"].all()
