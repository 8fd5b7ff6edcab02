"""A panel's state: pure moves, no widget, no thread, no model."""

from __future__ import annotations

import subprocess
import sys
from types import MappingProxyType
from typing import Any

import pytest

from qwenvl_kit import Result
from qwenvl_kit.compare.grid import GridCell
from qwenvl_kit.widgets.code import to_code
from qwenvl_kit.widgets.state import PanelImage, State

IMAGES = (PanelImage("a", b"1"), PanelImage("b", b"2"), PanelImage("c", b"3"))


def cell(setting: int = 0, repeat: int = 0) -> GridCell:
    return GridCell(setting, repeat, [], None, 28, None)


def ready(**asked: Any) -> State:
    options = {"vary": {"resized_height": [56, 112]}, "options": {"backend": "echo"}, **asked}
    return State().add(IMAGES).ask("What is it?", options["options"], options["vary"], options.get("repeats", 1))


def test_the_state_is_importable_without_ipywidgets() -> None:
    # The package says at once that its extra is missing; the state itself needs none of it.
    probe = (
        "import sys, types; package = types.ModuleType('qwenvl_kit.widgets'); import qwenvl_kit;"
        "package.__path__ = [qwenvl_kit.__path__[0] + '/widgets']; sys.modules['qwenvl_kit.widgets'] = package;"
        "import qwenvl_kit.widgets.state; print([n for n in ('ipywidgets', 'torch') if n in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", probe], text=True).strip() == "[]"


def test_moves_leave_the_state_they_start_from_as_it_was() -> None:
    at_rest = ready()
    begun = at_rest.start(0.0)

    assert (at_rest.phase, begun.phase) == ("idle", "running")
    assert at_rest.trial is None
    assert isinstance(begun.options, MappingProxyType)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (State().ask("What?", {}, {}), "No image is chosen"),
        (ready().choose([]), "No image is chosen"),
        (State().add(IMAGES).ask("  ", {}, {}), "The prompt is empty"),
        (ready(options={"temperature": -1.0, "do_sample": True}), "temperature=-1.0 is invalid with do_sample=True"),
        (ready(vary={"resized_height": [0]}), "at least 1"),
        (ready().start(0.0), "A run is in progress"),
    ],
)
def test_what_keeps_a_run_from_beginning_is_said_and_nothing_is_lost(state: State, said: str) -> None:
    refused = state.start(1.0)

    assert said in refused.message
    assert refused.tone == "error"
    assert (refused.phase, refused.trial, refused.images) == (state.phase, state.trial, state.images)


def test_answers_are_counted_and_the_time_left_follows_their_pace() -> None:
    state = ready().start(10.0).start_cell(cell())
    assert state.trial is not None
    assert state.trial.seconds_left(11.0) is None

    state = state.add_result(0, 0, Result(0, "ok", text="x"), 12.0).add_result(0, 0, Result(1, "ok", text="y"), 13.0)

    assert state.trial is not None
    assert (state.trial.n_done, state.trial.n_wanted) == (2, 6)
    assert state.trial.seconds_left(13.0) == pytest.approx(4.0)  # one a second, four to go
    assert [len(done.results) for done in state.trial.results()] == [2]


def test_a_cancelled_run_keeps_its_answers_and_says_how_many() -> None:
    state = ready().start(0.0).start_cell(cell()).add_result(0, 0, Result(0, "ok", text="x"), 1.0).stop()
    assert state.phase == "stopping"

    state = state.add_result(0, 0, Result(1, "cancelled"), 1.1).finish(1.2)

    assert state.phase == "idle"
    assert "Stopped after 1 of 6 answers" in state.message
    assert state.start(2.0).phase == "running"


def test_a_run_that_breaks_is_told_and_the_panel_can_run_again() -> None:
    broken = ready().start(0.0).fail("The run failed: no such model")

    assert (broken.phase, broken.tone) == ("idle", "error")
    assert broken.start(1.0).phase == "running"


def test_failed_rows_are_told_at_the_end() -> None:
    state = ready(vary={}).choose([0]).start(0.0).start_cell(cell())
    state = state.add_result(0, 0, Result(0, "error", error="no picture", stage="decode"), 0.5).finish(1.0)

    assert "1 failed" in state.message
    assert state.tone == "error"


def test_the_run_before_is_kept_for_comparison_unless_nothing_came_of_the_last() -> None:
    first = ready(vary={}).start(0.0).start_cell(cell()).add_result(0, 0, Result(0, "ok", text="x"), 0.5).finish(1.0)
    second = first.start(2.0)
    third = second.fail("broken").start(3.0)

    assert second.before is first.trial
    assert third.before is first.trial


def test_code_names_headers_and_keeps_their_values_out() -> None:
    options = {"backend": "echo", "headers": {"Authorization": "Bearer hunter2"}}
    state = State().add([PanelImage("a", "a.png")]).ask("What is it?", options, {}, 1)

    code = to_code(state)

    assert "hunter2" not in code
    assert "headers={'Authorization': ...}" in code
