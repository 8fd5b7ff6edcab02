"""Ctrl-C after the last row: results are kept, wherever it lands."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

import qwenvl_kit
from qwenvl_kit import Control, Interrupted, frame_run, operator
from qwenvl_kit.interrupts import InterruptGuard
from qwenvl_kit.operator import QwenVLImageUnderstanding
from qwenvl_kit.types import Result

ECHO: dict[str, Any] = {"backend": "echo", "progress": False}


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    """SIGINT is ignored in what a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"image": [np.full((56, 56, 3), level, np.uint8) for level in range(3)]})


def interrupting(function: Callable[..., Any], *, after: bool = False) -> Callable[..., Any]:
    """The function, with Ctrl-C pressed before or after it."""

    def interrupted(*args: Any, **named: Any) -> Any:
        if not after:
            signal.raise_signal(signal.SIGINT)
        result = function(*args, **named)
        if after:
            signal.raise_signal(signal.SIGINT)
        return result

    return interrupted


@pytest.mark.parametrize("after", [False, True])
def test_ctrl_c_while_results_become_a_frame_keeps_them(
    frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr(frame_run, "result_frame", interrupting(frame_run.result_frame, after=after))
    with pytest.raises(Interrupted, match="Interrupted after 3 of 3 rows") as caught:
        frame.vl.caption("image", **ECHO)

    last = qwenvl_kit.last_run()
    assert last is not None
    assert last["status"].tolist() == ["ok"] * 3
    assert caught.value.results.tolist() == last["text"].tolist()


def test_ctrl_c_that_leaves_the_engine_keeps_the_rows_that_were_counted(
    frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = frame_run.execute

    def stopped(*args: Any, control: Control, **named: Any) -> Any:
        engine(*args, control=control, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(frame_run, "execute", stopped)
    with pytest.raises(Interrupted) as caught:
        frame.vl.run("image", **ECHO)
    assert caught.value.results["status"].tolist() == ["ok"] * 3


def test_ctrl_c_between_the_last_row_and_the_end_of_the_engine_waits_for_it(
    frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_run, "execute", interrupting(frame_run.execute, after=True))
    with pytest.raises(Interrupted) as caught:
        frame.vl.run("image", **ECHO)
    assert "effective" in caught.value.results.attrs
    assert caught.value.results["status"].tolist() == ["ok"] * 3


def test_the_last_run_is_the_newest_also_where_its_frame_was_never_made(
    frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame.vl.run("image", prompt="first", **ECHO)
    make = frame_run.result_frame

    def broken(*_: object) -> pd.DataFrame:
        raise MemoryError

    monkeypatch.setattr(frame_run, "result_frame", broken)
    with pytest.raises(MemoryError):
        frame.vl.run("image", prompt="second", **ECHO)
    monkeypatch.setattr(frame_run, "result_frame", make)
    last = qwenvl_kit.last_run()
    assert last is not None
    assert last["text"].str.startswith("second").all()


def test_the_operator_keeps_results_too(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "result_frame", interrupting(operator.result_frame))
    with pytest.raises(Interrupted) as caught:
        QwenVLImageUnderstanding(backend="echo", image_src_type="auto")(frame["image"])
    assert [result.status for result in caught.value.results] == ["ok"] * 3


def test_interrupts_before_the_last_row_are_passed_on_and_the_handler_is_put_back() -> None:
    with InterruptGuard(2) as guard:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        for row in range(2):
            assert guard.control.on_result is not None
            guard.control.on_result(Result(row, "ok"))
        signal.raise_signal(signal.SIGINT)  # held
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # a second one leaves an engine that does not end
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_leave_the_handler_alone(frame: pd.DataFrame) -> None:
    found: list[object] = []

    def work() -> None:
        with InterruptGuard(1):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
