"""What if this call raises: one fault at each call of a library, and one row at most is an error."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from helpers.fake_backends import within
from helpers.malformed_inputs import encoded, noise
from helpers.malformed_inputs.scripts import script
from PIL import Image

import qwenvl_kit

HANGS_S = 60.0
COLUMNS = (
    "quick bytes", "slow bytes", "drafts", "odd modes", "paths", "file addresses", "base64", "data addresses", "http",
    "fsspec",
    "images", "open images", "arrays", "several", "known paths", "known addresses",
)  # fmt: skip
JPEGS = [encoded(noise(24, 20 + number, number), "JPEG") for number in range(5)]
SLOW = [encoded(noise(24, 20 + number, number), "TIFF") for number in range(5)]  # decoded in a process of its own


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def injection() -> ModuleType:
    return script("fault_injection")


@pytest.fixture(scope="module")
def columns(injection: ModuleType) -> Iterator[dict[str, Any]]:
    with injection.columns() as made:
        yield {column.name: column for column in made}


def run(cells: list[object], **options: Any) -> pd.DataFrame:
    return within(HANGS_S, lambda: pd.Series(cells, dtype=object).vl.run(backend="echo", progress=False, **options))


def test_all_ways_of_a_row_are_swept(columns: dict[str, Any]) -> None:
    assert set(columns) == set(COLUMNS)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_fault_at_any_call_of_a_library_is_one_rows_error(
    injection: ModuleType, columns: dict[str, Any], name: str
) -> None:
    column = columns[name]
    column.prepare()

    n_runs, wrong = injection.sweep(column, n_faults=2)

    assert n_runs >= 20
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", ["quick bytes", "http"])
def test_a_fault_inside_a_library_is_one_rows_error(injection: ModuleType, columns: dict[str, Any], name: str) -> None:
    column = columns[name]
    column.prepare()

    wrong = injection.sweep_deep(column, 60, seed=0)

    assert not wrong, "\n".join(wrong)


def _once(real: Callable[..., Any], fault: Callable[[], BaseException], nth: int) -> Callable[..., Any]:
    calls: list[None] = []
    lock = threading.Lock()

    def stand_in(*args: Any, **options: Any) -> Any:
        with lock:
            calls.append(None)
            is_due = len(calls) == nth + 1
        if is_due:
            raise fault()
        return real(*args, **options)

    return stand_in


@pytest.mark.parametrize("cells", [JPEGS, SLOW], ids=["quick", "slow"])
@pytest.mark.parametrize("nth", range(6))
def test_a_thread_that_cannot_start_loses_no_row(
    monkeypatch: pytest.MonkeyPatch, cells: list[object], nth: int
) -> None:
    started = threading.Thread.start
    counted = _once(started, lambda: RuntimeError("can't start new thread"), nth)

    def start(thread: threading.Thread) -> None:
        return counted(thread) if thread.name.startswith("qwenvl_kit") else started(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    outcome = _statuses_or_message(cells)
    monkeypatch.undo()

    assert "thread" in outcome or (outcome.count("ok") >= 4 and set(outcome) <= {"ok", "error"})
    assert set(run(cells)["status"]) == {"ok"}


def _statuses_or_message(cells: list[object]) -> list[str] | str:
    try:
        return list(run(cells)["status"])
    except RuntimeError as error:  # `BackendFailed` is one
        return str(error)


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        MemoryError(),
        ValueError("odd"),
    ],
    ids=["EMFILE", "ENOMEM", "MemoryError", "ValueError"],
)
def test_a_process_that_cannot_start_is_one_rows_error(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    run(JPEGS)
    monkeypatch.setattr(subprocess.Popen, "__init__", _once(subprocess.Popen.__init__, lambda: fault, 0))

    statuses = run(SLOW)["status"].tolist()

    assert statuses.count("ok") >= 4
    assert set(statuses) <= {"ok", "error"}


@pytest.mark.parametrize("stop", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_what_ends_the_interpreter_is_no_rows_error(monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]) -> None:
    monkeypatch.setattr(Image, "open", _once(Image.open, stop, 0))

    with pytest.raises((qwenvl_kit.errors.BackendFailed, stop)) as raised:
        run(JPEGS)

    causes = [raised.value, raised.value.__cause__, raised.value.__context__]
    assert any(isinstance(cause, stop) for cause in causes)


def test_faults_in_the_middle_of_a_file_are_that_rows_error(tmp_path: Path) -> None:
    """A disk that fails after some blocks, by a real file cut while it is read."""
    paths = [tmp_path / f"{number}.jpg" for number in range(5)]
    for path, data in zip(paths, JPEGS, strict=True):
        path.write_bytes(data)
    paths[2].write_bytes(JPEGS[2][:300])

    assert run([str(path) for path in paths])["status"].tolist() == ["ok", "ok", "error", "ok", "ok"]
