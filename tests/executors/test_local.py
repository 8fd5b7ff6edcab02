"""Turns at the warm model: threads wait, nested calls are refused, Ctrl-C keeps what is done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from helpers.fake_backends import gray, within

import qwenvl_kit
from qwenvl_kit import BackendBusy, Control, Interrupted, StoreError, StoreWarning
from qwenvl_kit.store import SqliteStore

ECHO = {"backend": "echo", "progress": False}


def test_two_threads_that_call_at_once_both_get_their_answers() -> None:
    answers: dict[str, list[str]] = {}

    def ask(prompt: str) -> None:
        answers[prompt] = pd.Series([gray(level) for level in range(50)]).vl.caption(prompt=prompt, **ECHO).tolist()

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert all(text.startswith(prompt) for prompt, texts in answers.items() for text in texts)
    assert [len(texts) for texts in answers.values()] == [50] * 3


@pytest.mark.parametrize("listener", ["on_token", "on_result"])
def test_a_call_from_inside_a_run_is_refused_instead_of_waiting_for_itself(listener: str) -> None:
    def nested(*_: object) -> None:
        pd.Series([gray(1)]).vl.caption(**ECHO)

    with pytest.raises(BackendBusy, match="callback"):
        within(30, lambda: pd.Series([gray(2)]).vl.caption(control=Control(**{listener: nested}), **ECHO))


def test_a_model_that_does_not_load_raises_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("the weights are gone")

    qwenvl_kit.unload()
    monkeypatch.setattr("qwenvl_kit.inference.echo.EchoSpec.load", broken)

    with pytest.raises(qwenvl_kit.BackendFailed, match="the weights are gone") as caught:
        pd.Series([gray(1), None]).vl.caption(**ECHO)
    assert isinstance(caught.value.__cause__, OSError)


INTERRUPTED = """
import dataclasses, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a shell runs in the background
import numpy as np, pandas as pd, qwenvl_kit
from qwenvl_kit.inference import echo
slow = echo.spec
echo.spec = lambda config: dataclasses.replace(slow(config), seconds_per_batch=0.05)
told = qwenvl_kit.Control(on_result=lambda result: result.status == "ok" and print(result.row, flush=True))
cells = [np.full((56, 56, 3), n, dtype=np.uint8) for n in range(200)]
try:
    pd.Series(cells).vl.caption(backend="echo", batch_size=1, progress=False, control=told)
except KeyboardInterrupt as error:
    last = qwenvl_kit.last_run()
    print("interrupted", type(error).__name__, error.results.notna().sum(), (last["status"] == "ok").sum(),
          (last["status"] == "cancelled").sum(), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a POSIX signal here")
def test_ctrl_c_keeps_finished_rows_and_is_a_keyboard_interrupt() -> None:
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    told = process.communicate(timeout=60)[0].splitlines()[-1].split()

    assert told[:2] == ["interrupted", "Interrupted"]
    done, kept, cancelled = map(int, told[2:])
    assert done == kept >= 5
    assert cancelled == 200 - kept > 0


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a POSIX signal here")
@pytest.mark.parametrize("after_s", [0.0, 0.013, 0.05, 0.11, 0.4])
def test_ctrl_c_at_any_instant_of_a_run_loses_nothing_that_was_counted(after_s: float) -> None:
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    counted = [process.stdout.readline()]
    time.sleep(after_s)
    os.kill(process.pid, signal.SIGINT)
    lines = [*counted, *process.communicate(timeout=60)[0].splitlines()]

    told = lines[-1].split()
    assert told[:2] == ["interrupted", "Interrupted"]
    done, kept, cancelled = map(int, told[2:])
    assert done == kept >= len(lines) - 1
    assert kept + cancelled == 200


FORKED = """
import os, sys
import numpy as np, pandas as pd, qwenvl_kit
cells = pd.Series([np.zeros((56, 56, 3), np.uint8)])
if sys.argv[1] == "loaded":
    cells.vl.caption(backend="echo", progress=False)
child = os.fork()
if child == 0:
    try:
        print(cells.vl.caption(backend="echo", progress=False).notna().all(), flush=True)
    except Exception as error:
        print(type(error).__name__, "spawn" in str(error), flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(cells.vl.caption(backend="echo", progress=False).notna().all())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(("when", "child"), [("loaded", "ForkedProcess True"), ("not yet", "True")])
def test_a_forked_process_answers_rightly_or_says_why_it_cannot(when: str, child: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORKED, when], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.splitlines() == [child, "True"]


@pytest.mark.parametrize("step", ["add_run", "close"])
@pytest.mark.parametrize("error", [StoreError("the disk is full"), OSError("unplugged"), RuntimeError("odd")], ids=repr)
def test_results_are_returned_when_the_record_of_the_run_cannot_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    last_step_raises(monkeypatch, step, error)

    with pytest.warns(StoreWarning, match=f"record of this run was not stored.*{error}"):
        frame = pd.Series([gray(n) for n in range(9)]).vl.run(store=tmp_path / "a.db", do_sample=True, **ECHO)

    assert (frame["status"] == "ok").all()
    assert qwenvl_kit.last_run() is frame


def test_results_are_kept_when_that_warning_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last_step_raises(monkeypatch, "add_run", StoreError("the disk is full"))

    # pytest makes errors of all warnings
    with pytest.raises(StoreError, match="record of this run was not stored"):
        pd.Series([gray(n) for n in range(9)]).vl.run(store=tmp_path / "a.db", do_sample=True, **ECHO)

    frame = qwenvl_kit.last_run()
    assert frame is not None
    assert (frame["status"] == "ok").sum() == 9


@pytest.mark.parametrize("step", ["add_run", "close"])
def test_ctrl_c_while_the_record_is_stored_keeps_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    last_step_raises(monkeypatch, step, KeyboardInterrupt())

    with pytest.raises(Interrupted, match="9 of 9 rows") as stopped:
        pd.Series([gray(n) for n in range(9)]).vl.run(store=tmp_path / "a.db", do_sample=True, **ECHO)

    assert (stopped.value.results["status"] == "ok").all()


def test_rows_without_a_picture_need_no_store(tmp_path: Path) -> None:
    with pytest.warns(StoreWarning, match="record of this run was not stored.*folder"):
        frame = pd.Series([None, ""]).vl.run(store=tmp_path / "missing" / "a.db", **ECHO)

    assert frame["status"].tolist() == ["null_image"] * 2


def last_step_raises(monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException) -> None:
    real = getattr(SqliteStore, step)

    def raises(self: SqliteStore, *rest: object) -> None:
        real(self, *rest)
        raise error

    monkeypatch.setattr(SqliteStore, step, raises)
