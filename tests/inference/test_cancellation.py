"""Cancellation points end a cancelled run, report its progress, and cost nothing outside of a run."""

from __future__ import annotations

import threading

import pytest

from qwenvl_kit.inference.backend import RunControl
from qwenvl_kit.inference.cancellation import Cancelled, advance, bound_advance, cancellable, check, ended_by, stage


def test_outside_of_a_run_nothing_is_cancelled_or_reported() -> None:
    with stage("load", 3), ended_by(lambda: pytest.fail("interrupted")):
        check()
        advance()


def test_progress_of_a_stage_is_reported_from_any_thread_that_works_for_the_run() -> None:
    seen: list[tuple[str, int, int]] = []
    with cancellable(RunControl(report=lambda *step: seen.append(step))), stage("load", 2):
        advance()
        thread = threading.Thread(target=bound_advance())
        thread.start()
        thread.join()

    assert seen == [("load", 1, 2), ("load", 2, 2)]


def test_a_call_into_a_library_is_interrupted_and_what_it_raises_for_that_is_no_error() -> None:
    control = RunControl()
    interrupted = threading.Event()

    def library() -> None:
        control.cancel.set()
        assert interrupted.wait(30)
        raise RuntimeError("terminated")

    with cancellable(control), stage("prefill", 1), pytest.raises(Cancelled), ended_by(interrupted.set):
        library()


def test_an_error_of_a_library_stays_an_error() -> None:
    failing = pytest.raises(RuntimeError, match="broken")
    with cancellable(RunControl()), stage("prefill", 1), failing, ended_by(lambda: None):
        raise RuntimeError("broken")


def test_no_thread_is_started_for_a_token() -> None:
    before = threading.active_count()
    with cancellable(RunControl()), ended_by(lambda: None):
        assert threading.active_count() == before
