"""Workers give what one process gives: the same answers in the same order, whatever happens to a worker."""

from __future__ import annotations

import functools
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from helpers.fake_backends import gray, within
from helpers.openai_server import MODEL, State, expected, serve
from PIL import Image

import qwenvl_kit
from qwenvl_kit import ConfigError, Control, ModelNotFound, OptionWarning, RowErrors, StoreError, StoreWarning
from qwenvl_kit.executors.daft_batches import DaftWorkers, _rows_in_flight
from qwenvl_kit.executors.daft_worker import Worker
from qwenvl_kit.executors.serialization import pack_error, unpack_error
from qwenvl_kit.types import Result

ECHO: dict[str, Any] = {"backend": "echo", "progress": False, "engine": "daft"}
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize(
    ("options", "n_rows"),
    [
        ({}, 16),
        ({"batch_size": 2}, 2),
        ({"rows_in_flight": 64}, 64),
        ({"batch_size": 2, "rows_in_flight": 64}, 64),
        ({"batch_size": 2, "rows_in_flight": "auto"}, 16),
    ],
)
def test_batches_of_workers_follow_the_rows_in_flight(options: dict[str, Any], n_rows: int) -> None:
    assert _rows_in_flight(qwenvl_kit.Config(**options)) == n_rows


def told_same(here: pd.DataFrame, there: pd.DataFrame) -> None:
    timing = ["seconds", "cached"]
    pd.testing.assert_frame_equal(here.drop(columns=timing), there.drop(columns=timing))
    assert here.attrs["effective"] == there.attrs["effective"]
    assert list(here.attrs) == list(there.attrs)
    assert here.attrs["rows"] == there.attrs["rows"]


def odd_cells(folder: Path) -> list[Any]:
    """Everything that a column may hold, good and bad."""
    path = folder / "a.png"
    Image.fromarray(gray(7)).save(path)
    pil = Image.fromarray(gray(9))
    data = path.read_bytes()
    good = [gray(1), str(path), path, data, pil, [gray(1), gray(2)], {"bytes": data}, {"path": str(path)}]
    null = [None, float("nan"), pd.NA, "", b"", []]
    bad = ["missing.png", b"\x89PNG", 12, object(), [gray(1), None], lambda: None, "http://me:hunter2@[::1/a.png"]
    return [*good, *null, *bad, *good]


@pytest.mark.filterwarnings("ignore::qwenvl_kit.RowErrorWarning")
@pytest.mark.parametrize("concurrency", [None, 2])
def test_a_frame_of_odd_cells_comes_back_as_from_one_process(tmp_path: Path, concurrency: int | None) -> None:
    cells = odd_cells(tmp_path)
    index = pd.MultiIndex.from_tuples([("a", n // 2) for n in range(len(cells))])  # labels stand twice
    frame = pd.DataFrame(
        {"image": cells, "prompt": [["What?", None, "Where?"][n % 3] for n in range(len(cells))]}, index=index
    )

    here = frame.vl.run("image", prompts="prompt", **{**ECHO, "engine": "local"})
    there = frame.vl.run("image", prompts="prompt", concurrency=concurrency, **ECHO)

    told_same(here, there)
    assert not [text for text in there["error"].dropna() if "hunter2" in text]
    assert there.attrs["asked"]["engine"] == "daft"


@pytest.mark.filterwarnings("ignore::qwenvl_kit.RowErrorWarning")
def test_every_door_takes_the_engine() -> None:
    frame = pd.DataFrame({"image": [gray(1), None, gray(2)]})
    here = {**ECHO, "engine": "local"}
    asked = {"what": "What is it?", "where": "Where is it?"}

    pd.testing.assert_series_equal(frame.vl.caption("image", **ECHO), frame.vl.caption("image", **here))
    pd.testing.assert_frame_equal(frame.vl.ask("image", asked, **ECHO), frame.vl.ask("image", asked, **here))
    series = frame["image"]
    pd.testing.assert_series_equal(series.vl.caption(**ECHO), series.vl.caption(**here))
    pd.testing.assert_series_equal(series.vl.ask("What is it?", **ECHO), series.vl.ask("What is it?", **here))
    told_same(series.vl.run(**here), series.vl.run(**ECHO))


def test_ten_thousand_rows_keep_their_order_and_are_counted_once() -> None:
    told: list[int] = []
    cells = pd.Series([gray(n % 256) for n in range(10_000)])
    prompts = [f"row {n}" for n in range(10_000)]

    said = cells.vl.caption(prompts=prompts, control=Control(on_result=lambda r: told.append(r.row)), **ECHO)

    assert [text.split(" [")[0] for text in said] == prompts
    assert sorted(told) == list(range(10_000))


def test_sampled_answers_count_their_draws_as_in_one_process() -> None:
    cells = pd.Series([gray(n % 3) for n in range(60)])
    options: dict[str, Any] = {"do_sample": True, "seed": 7, "batch_size": 1}

    here = cells.vl.caption(**{**ECHO, "engine": "local"}, **options)
    there = cells.vl.caption(concurrency=2, **ECHO, **options)

    assert there.tolist() == here.tolist()
    assert here.nunique() == 60, "each draw has a seed of its own"


@pytest.mark.slow
def test_the_demo_model_says_the_same(gallery: Any) -> None:
    cells = pd.Series([*gallery.urls, None, gallery.urls[0]])
    options: dict[str, Any] = {"model_name": "demo", "dtype": "float32", "batch_size": 2, "progress": False}

    told_same(cells.vl.run(**options), cells.vl.run(engine="daft", **options))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::qwenvl_kit.RowErrorWarning")
def test_answers_of_a_form_are_the_same_on_workers(gallery: Any) -> None:
    frame = pd.DataFrame({"image": [*gallery.urls[:3], None], "tags": [["Yes.", "No."], ["one", "two"], None, ["a"]]})
    options: dict[str, Any] = {"model_name": "demo", "dtype": "float32", "batch_size": 2, "progress": False}
    schema = {"count": Literal[1, 2, 3], "round": bool}

    def told(engine: str) -> list[Any]:
        vl, asked = frame.vl, {**options, "engine": engine}
        return [
            vl.classify("image", ["Yes.", "No."], prompt="Is there a circle?", prior="blank", all=True, **asked),
            vl.extract("image", schema, logprobs=0, **asked),
            vl.ask("image", "How many?", regex="[0-9]{2}", **asked).to_frame(),
            vl.ask("image", "Which?", choices="tags", **asked).to_frame(),
        ]

    for here, there in zip(told("local"), told("daft"), strict=True):
        pd.testing.assert_frame_equal(there, here, atol=1e-5)
        assert here.iloc[:2].notna().any(axis=1).all()


@pytest.mark.filterwarnings("ignore::qwenvl_kit.RowErrorWarning")
@pytest.mark.parametrize("cells", [[], [None, None], ["missing.png"] * 0 + [12]], ids=["no-rows", "null", "bad"])
def test_a_frame_without_work_starts_no_worker(cells: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: object) -> None:
        pytest.fail("Daft was started")

    monkeypatch.setattr("qwenvl_kit.executors.daft.DaftWorkers", forbidden)
    series = pd.Series(cells, dtype=object)

    told_same(series.vl.run(**{**ECHO, "engine": "local"}), series.vl.run(**ECHO))


# ------------------------------------------------------------------ what goes wrong


def test_a_missing_model_raises_what_it_raises_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    for concurrency in (1, 2):
        with pytest.raises(ModelNotFound, match="no/such"):
            pd.Series([gray(1)]).vl.caption(
                model_name="no/such", model_path=str(tmp_path), engine="daft", concurrency=concurrency, progress=False
            )


def test_a_backend_that_breaks_ends_the_run_with_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a worker in this process, so that it can be broken."""

    def broken(*_: object) -> None:
        raise OSError("the weights are gone")

    def answers(workers: DaftWorkers, packed: dict[int, bytes]) -> Iterator[dict[str, Any]]:
        worker = Worker(workers.config)
        for at, item in list(packed.items()):
            yield {"at": [at], "answer": within(30, functools.partial(worker.answer, [item]))}
            qwenvl_kit.unload()
            monkeypatch.setattr("qwenvl_kit.inference.echo.EchoSpec.load", broken)

    monkeypatch.setattr(DaftWorkers, "answers", answers)

    with pytest.raises(qwenvl_kit.BackendFailed, match="the weights are gone") as caught:
        pd.Series([gray(1), gray(2), None]).vl.caption(**ECHO)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.results.notna().tolist() == [True, False, False]
    assert qwenvl_kit.last_run()["status"].tolist() == ["ok", "error", "null_image"]  # type: ignore[index]


def test_a_job_that_only_dies_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    n_tries = []

    def answers(*_: object) -> Iterator[dict[str, Any]]:
        n_tries.append(1)
        raise RuntimeError("the worker closed the connection")
        yield

    monkeypatch.setattr(DaftWorkers, "answers", answers)

    with pytest.raises(qwenvl_kit.BackendFailed, match="closed the connection"):
        pd.Series([gray(1)]).vl.caption(**ECHO)
    assert len(n_tries) == 3


def test_errors_that_cannot_travel_keep_their_message() -> None:
    class Held(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("stays here")

    assert str(unpack_error(pack_error(Held("out of memory")))) == "Held: out of memory"
    assert type(unpack_error(pack_error(ModelNotFound("none")))) is ModelNotFound


def test_failed_rows_are_raised_or_warned_of_as_in_one_process() -> None:
    cells = pd.Series([gray(1), "missing.png"])

    with pytest.warns(qwenvl_kit.RowErrorWarning, match="1 of 2 rows failed"):
        cells.vl.caption(**ECHO)
    with pytest.raises(RowErrors) as caught:
        cells.vl.caption(on_error="raise", **ECHO)
    assert caught.value.results.notna().tolist() == [True, False]


def test_options_without_effect_are_told_where_the_caller_is() -> None:
    with pytest.warns(OptionWarning, match="temperature") as caught:
        pd.Series([gray(1)]).vl.caption(temperature=0.5, **ECHO)
    assert [one.filename for one in caught if one.category is OptionWarning] == [__file__]
    with pytest.raises(ConfigError, match="strict=True"):
        pd.Series([gray(1)]).vl.caption(temperature=0.5, strict=True, **ECHO)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "dask"}, "Use local, daft or ray"),
        ({"concurrency": 2}, "Add engine='daft'"),
        ({"engine": "daft", "concurrency": 0}, "at least 1"),
        ({"engine": "daft", "num_gpus": 1}, "requires engine='ray'"),
        ({"engine": "ray", "num_gpus": 1.5}, "a whole number of GPUs"),
        ({"engine": "ray", "rank": 1}, "Use rank=0 or rank=None"),
    ],
)
def test_impossible_wishes_are_refused_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        pd.Series([gray(1)]).vl.caption(backend="echo", progress=False, **options)


def test_tokens_cannot_be_listened_to_from_afar() -> None:
    with pytest.raises(ConfigError, match="on_result="):
        pd.Series([gray(1)]).vl.caption(control=Control(on_token=lambda *_: None), **ECHO)


def test_a_cell_that_cannot_travel_is_its_rows_error() -> None:
    class Rooted(np.ndarray):
        def __reduce__(self) -> Any:
            raise TypeError("stays here")

    with pytest.warns(qwenvl_kit.RowErrorWarning, match="cannot be handed to a worker"):
        run = pd.Series([gray(1).view(Rooted), gray(2)]).vl.run(**ECHO)
    assert run["status"].tolist() == ["error", "ok"]


def test_a_store_is_filled_and_asked_by_workers(tmp_path: Path) -> None:
    store = str(tmp_path / "answers.db")
    cells = pd.Series([gray(n) for n in range(40)])

    first = cells.vl.run(store=store, concurrency=2, **ECHO)
    again = cells.vl.run(store=store, **{**ECHO, "engine": "local"})

    assert not first["cached"].any()
    assert again["cached"].all()
    assert again["text"].tolist() == first["text"].tolist()
    from qwenvl_kit.store import open_store

    with open_store(store) as opened:
        assert len(list(opened.runs())) == 2, "a run is one run, however many workers it had"


def test_results_are_returned_when_the_record_of_the_run_cannot_be_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwenvl_kit.store import SqliteStore

    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(SqliteStore, "add_run", full)

    with pytest.warns(StoreWarning, match="record of this run was not stored.*full"):
        run = pd.Series([gray(n) for n in range(9)]).vl.run(store=tmp_path / "a.db", do_sample=True, **ECHO)

    assert (run["status"] == "ok").all()


def test_a_store_that_cannot_be_used_is_told_before_any_work(tmp_path: Path) -> None:
    told: list[Result] = []

    with pytest.raises(StoreError, match="Make the folder first"):
        pd.Series([gray(1), None]).vl.run(
            store=tmp_path / "missing" / "a.db", control=Control(on_result=told.append), **ECHO
        )

    assert told == []


def test_rows_that_a_worker_finished_before_it_broke_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl_kit.store import SqliteStore

    put = SqliteStore.put
    kept: list[str] = []

    def full_after_two(self: SqliteStore, key: str, result: Result) -> None:
        if len(kept) == 2:
            raise StoreError("the disk is full")
        put(self, key, result)
        kept.append(key)

    def answers(workers: DaftWorkers, packed: dict[int, bytes]) -> Iterator[dict[str, Any]]:
        """As Daft would give them, from a worker in this process."""
        answer = Worker(workers.config).answer
        yield {"at": list(packed), "answer": within(30, lambda: answer(list(packed.values())))}

    monkeypatch.setattr(SqliteStore, "put", full_after_two)
    monkeypatch.setattr(DaftWorkers, "answers", answers)

    with pytest.raises(StoreError, match="full"):
        pd.Series([gray(n) for n in range(9)]).vl.run(store=tmp_path / "a.db", batch_size=1, **ECHO)

    last = qwenvl_kit.last_run()
    assert last is not None
    assert (last["status"] == "ok").sum() == 2


def test_cancelling_keeps_what_is_done() -> None:
    control = Control()
    done: list[Result] = []
    told = Control(
        control.cancel, on_result=lambda result: (done.append(result), len(done) == 8 and control.cancel.set())
    )

    run = pd.Series([gray(n) for n in range(200)]).vl.run(model_name="echo-20ms", batch_size=2, control=told, **ECHO)

    counts = run["status"].value_counts()
    assert counts["ok"] >= 8
    assert counts["cancelled"] == 200 - counts["ok"] > 0


KILLED = """
import os, signal, sys, threading, warnings
import numpy as np, pandas as pd, psutil, qwenvl_kit
warnings.simplefilter("ignore")
n_done, killed = 0, []
def watch(result):
    global n_done
    n_done += 1
    if n_done == 20 and not killed:
        workers = [one for one in psutil.Process().children(recursive=True)
                   if "udf_worker" in " ".join(one.cmdline())]
        killed.append(workers[0].pid)
        os.kill(workers[0].pid, signal.SIGKILL)
if __name__ == "__main__":
    cells = [np.full((56, 56, 3), n, dtype=np.uint8) for n in range(200)]
    run = pd.Series(cells).vl.run(backend="echo", model_name="echo-20ms", batch_size=2, engine="daft", concurrency=2,
                                  progress=False, prompts=[str(n) for n in range(200)],
                                  control=qwenvl_kit.Control(on_result=watch))
    right = [text.split(" ")[0] == str(n) for n, text in enumerate(run["text"])]
    print(len(killed), sum(right), run.attrs["effective"]["notes"], n_done)
"""


def test_a_killed_worker_costs_no_row(tmp_path: Path) -> None:
    done = run_script(KILLED, tmp_path)

    n_killed, n_right, rest = done.split(" ", 2)
    assert (n_killed, n_right) == ("1", "200")
    assert "its rows ran again" in rest
    assert rest.endswith(" 200"), "each row is told once"


INTERRUPTED = """
import signal, sys, warnings
import numpy as np, pandas as pd, qwenvl_kit
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a shell runs in the background
warnings.simplefilter("ignore")
if __name__ == "__main__":
    told = qwenvl_kit.Control(on_result=lambda result: print(result.row, flush=True))
    cells = [np.full((56, 56, 3), n, dtype=np.uint8) for n in range(200)]
    try:
        pd.Series(cells).vl.caption(backend="echo", model_name="echo-50ms", batch_size=2, engine="daft", progress=False,
                                    control=told)
    except KeyboardInterrupt as error:
        last = qwenvl_kit.last_run()
        print("interrupted", type(error).__name__, error.results.notna().sum(), (last["status"] == "ok").sum(),
              (last["status"] == "cancelled").sum(), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a POSIX signal here")
def test_ctrl_c_keeps_finished_rows(tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    told = process.communicate(timeout=60)[0].splitlines()[-1].split()

    assert told[:2] == ["interrupted", "Interrupted"]
    done, kept, cancelled = map(int, told[2:])
    assert done == kept >= 5
    assert cancelled == 200 - kept > 0


def run_script(text: str, folder: Path) -> str:
    script = folder / "script.py"
    script.write_text(text)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def test_workers_ask_a_server_and_take_no_key_along(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(State(key="sk-marked-0123456789")) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-marked-0123456789")
        config = qwenvl_kit.Config(backend="openai", base_url=server.url, model_name=MODEL)
        options = {name: getattr(config, name) for name in config.explicit}
        cells = [gray(level) for level in range(40)]

        frame = pd.DataFrame({"image": cells}).vl.run("image", engine="daft", progress=False, prompt="What?", **options)

    assert frame["text"].tolist() == [expected("What?", cell) for cell in cells]
    assert b"sk-marked" not in pickle.dumps(config)
