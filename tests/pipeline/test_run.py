"""Every row exactly once, in order, whatever happens on the way."""

from __future__ import annotations

import threading
import time
from typing import Any

import pandas as pd
import pytest
from helpers.fake_backends import Script, ScriptedSpec, expected, gray, within
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenvl_kit import Config, Control
from qwenvl_kit.executors.local import run_spec
from qwenvl_kit.images import ImageLoader
from qwenvl_kit.options import DEFAULT_PROMPT
from qwenvl_kit.pipeline import Run
from qwenvl_kit.pipeline.run_record import distinct_prompts

CONFIG = Config(progress=False, batch_size=3)


def go(
    cells: list[Any],
    script: Script,
    prompts: list[str] | None = None,
    *,
    config: Config = CONFIG,
    control: Control | None = None,
) -> Run:
    spec = ScriptedSpec(config, script)
    prompts = prompts if prompts is not None else ["What?"] * len(cells)
    return within(30, lambda: run_spec(cells, prompts, config, spec, spec.acquire, control=control))


KINDS = st.sampled_from(["good", "null", "missing", "rubbish", "failing"])


def cell(kind: str, level: int) -> Any:
    return {
        "good": gray(level),
        "null": None,
        "missing": f"missing-{level}.png",
        "rubbish": b"rubbish" * (level + 1),
        "failing": gray(200 + level % 50),
    }[kind]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(st.tuples(KINDS, st.integers(0, 12), st.sampled_from(["a", "b"])), max_size=40),
    seed=st.integers(0, 10**6),
)
def test_every_row_comes_back_once_in_order_under_any_schedule(rows: list[tuple[str, int, str]], seed: int) -> None:
    cells = [cell(kind, level) for kind, level, _ in rows]
    script = Script(seed=seed, failing=frozenset(range(200, 250)), delay_s=0.0005)

    results = go(cells, script, [prompt for _, _, prompt in rows]).results

    statuses = {"good": "ok", "null": "null_image", "missing": "error", "rubbish": "error", "failing": "error"}
    stages = {"missing": "fetch", "rubbish": "decode", "failing": "generate"}
    assert [result.row for result in results] == list(range(len(rows)))
    assert [result.status for result in results] == [statuses[kind] for kind, _, _ in rows]
    assert [result.stage for result in results] == [stages.get(kind) for kind, _, _ in rows]
    for result, (kind, level, prompt) in zip(results, rows, strict=True):
        if kind == "good":
            assert result.text == expected(level, prompt)
    asked = [(request.prompt, int(request.images[0].pixels[0, 0, 0])) for request in script.seen]
    assert len(asked) == len(set(asked)), "equal questions are asked once"


def test_each_distinct_source_is_loaded_once_also_when_shared_between_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    real = ImageLoader.decode

    def counted(self: ImageLoader, source: Any, *rest: Any, **options: Any) -> Any:
        loads.append(source.key)
        return real(self, source, *rest, **options)

    monkeypatch.setattr(ImageLoader, "decode", counted)
    reference = gray(1)
    cells = [[reference, gray(level)] for level in range(2, 30)] + [reference, reference, gray(2)]

    done = go(cells, Script(delay_s=0.001))

    assert all(result.status == "ok" for result in done.results)
    assert len(loads) == len(set(loads)) == 29


def test_sampling_asks_each_row_with_a_seed_of_its_own_that_no_neighbour_changes() -> None:
    config = Config(progress=False, do_sample=True, seed=5)
    cells = [gray(1), gray(1), gray(2), gray(1)]

    together = [result.text for result in go(cells, Script(seed=1), config=config).results]
    fewer = [result.text for result in go(cells[:1] + cells[2:3], Script(seed=2), config=config).results]
    shuffled = [result.text for result in go(cells[::-1], Script(seed=3), config=config).results]
    other = [result.text for result in go(cells, Script(), config=config.replace(seed=6)).results]

    assert len(set(together)) == 4, "equal rows draw differently"
    assert [together[0], together[2]] == fewer
    assert sorted(shuffled) == sorted(together)
    assert not set(other) & set(together)


def test_a_backend_that_breaks_leaves_finished_rows_and_marks_the_others() -> None:
    done = go([gray(level) for level in range(40)], Script(raises_after=12))

    assert str(done.failure) == "the scripted backend broke"
    statuses = [result.status for result in done.results]
    assert set(statuses) <= {"ok", "error"}
    assert statuses.count("error") >= 1
    assert all("broke" in str(result.error) for result in done.results if result.status == "error")
    assert all(r.text == expected(r.row, "What?") for r in done.results if r.status == "ok")


@pytest.mark.parametrize(
    "script",
    [Script(returns_after=5), Script(forgets=True), Script(answers_twice=True)],
    ids=["returns early", "forgets a row", "answers twice"],
)
def test_a_backend_that_breaks_its_promise_is_found_out(script: Script) -> None:
    done = go([gray(level) for level in range(60)], script)

    assert done.failure is not None
    assert len(done.results) == 60


def test_a_listener_that_raises_ends_the_run_with_its_error() -> None:
    def on_result(_: object) -> None:
        raise ZeroDivisionError("in the listener")

    done = go([gray(level) for level in range(20)], Script(), control=Control(on_result=on_result))

    assert isinstance(done.failure, ZeroDivisionError)


def test_cancelling_returns_what_is_done() -> None:
    cancel = threading.Event()
    seen: list[int] = []

    def on_result(result: Any) -> None:
        seen.append(result.row)
        if len(seen) == 5:
            cancel.set()

    done = go([gray(level) for level in range(60)], Script(delay_s=0.01), control=Control(cancel, on_result=on_result))

    statuses = [result.status for result in done.results]
    assert done.failure is None
    assert statuses.count("ok") >= 5
    assert statuses.count("cancelled") >= 1
    assert set(statuses) == {"ok", "cancelled"}


def test_nothing_to_ask_loads_no_model() -> None:
    script = Script()

    done = go([None, "missing.png", b"rubbish"], script)

    assert script.n_loads == 0
    assert [result.status for result in done.results] == ["null_image", "error", "error"]


def test_a_slow_picture_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ImageLoader.decode
    order: list[int] = []

    def slow_first(self: ImageLoader, source: Any, *rest: Any, **options: Any) -> Any:
        if source.value[0, 0, 0] == 0:
            time.sleep(0.5)
        return real(self, source, *rest, **options)

    monkeypatch.setattr(ImageLoader, "decode", slow_first)
    go(
        [gray(level) for level in range(10)],
        Script(),
        control=Control(on_result=lambda result: order.append(result.row)),
    )

    assert order[-1] == 0
    assert len(order) == 10


@pytest.mark.parametrize(
    "fault", [AssertionError("a bug"), MemoryError(), RuntimeError("odd"), StopIteration()], ids=repr
)
def test_whatever_loading_an_image_raises_is_that_rows_error(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ImageLoader.decode

    def broken(self: ImageLoader, source: Any, *rest: Any, **options: Any) -> Any:
        if source.value[0, 0, 0] == 2:
            raise fault
        return real(self, source, *rest, **options)

    monkeypatch.setattr(ImageLoader, "decode", broken)
    done = go([gray(1), gray(2), gray(3)], Script())

    assert done.failure is None
    assert [result.status for result in done.results] == ["ok", "error", "ok"]


def test_the_threads_of_a_run_end_with_it() -> None:
    before = threading.active_count()
    go([gray(level) for level in range(30)], Script())
    go([gray(level) for level in range(30)], Script(raises_after=3))

    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_the_prompts_of_a_run_are_on_record_the_default_one_too() -> None:
    images = pd.Series([gray(1), gray(2)])
    by_default = images.vl.run(backend="echo", progress=False)
    of_rows = images.vl.run(prompts=["One?", None], prompt="Two?", backend="echo", progress=False)

    assert by_default.attrs["prompts"] == [DEFAULT_PROMPT]
    assert of_rows.attrs["prompts"] == ["One?", "Two?"]
    assert len(distinct_prompts([f"{n}?" for n in range(50)])) == 21
