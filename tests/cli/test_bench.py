"""``qwenvl-kit bench``: every size is tried, and the advice follows from what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import qwenvl_kit
from qwenvl_kit import Config
from qwenvl_kit.cli import bench, main
from qwenvl_kit.cli.bench import advise
from qwenvl_kit.cli.bench_runs import Budget, ModelBench, Pace, Setting
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.export import to_onnx
from qwenvl_kit.tasks.plan_time import calibration_of

SMALL = ["--pictures", "3", "--side", "84", "--rounds", "1", "--max-caption-length", "4"]
DEMO = {"model_name": "demo", "dtype": "float32", "max_caption_length": 4, "progress": False}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    qwenvl_kit.unload()


def test_each_batch_size_is_measured_and_one_of_them_is_advised(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: dict[int, list[int]] = {}  # tokens of each answer of the last run of a batch size
    run = ModelBench._run

    def watched(self: ModelBench, cells: pd.Series, options: dict[str, Any], *given: Any) -> pd.DataFrame | None:
        done = run(self, cells, options, *given)
        assert done is not None
        counted[options["batch_size"]] = done["new_tokens"].tolist()
        return done

    monkeypatch.setattr(ModelBench, "_run", watched)
    assert main(["bench", "--model-name", "demo", "--dtype", "float32", "--sizes", "1,3", *SMALL]) == 0

    *_, one, three, advice = capsys.readouterr().out.splitlines()
    for line, size in ((one, 1), (three, 3)):
        backend, threads, batch_size, pictures, tokens = line.split()
        assert (backend, threads, int(batch_size)) == ("torch", "auto", size)
        assert float(pictures) > 0
        assert len(counted[size]) == 3
        assert all(1 <= n <= 4 for n in counted[size]), "answers may end before their limit"
        assert float(tokens) == pytest.approx(sum(counted[size]) / 3 * float(pictures), rel=0.02)
    assert advice in [f"Set backend='torch', model_name='demo', threads=None, batch_size={size}." for size in (1, 3)]


def test_the_first_line_comes_before_anything_loads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object) -> list[Pace]:
        assert capsys.readouterr().out == "demo: images of 448 pixels, for at most 300 s\n"
        return []

    monkeypatch.setattr(bench, "_measure", slow)
    assert main(["bench", "--model-name", "demo"]) == 1


@dataclass
class Spent(Budget):
    """A budget of which nothing is left once the passes are timed."""

    n_asked: int = 0
    lines: list[str] = field(default_factory=list)

    @property
    def left_s(self) -> float:
        return 1e-3 if any("step:" in line for line in self.lines) else 1000.0


def run_bench(budget: Budget, lines: list[str], *sizes: int) -> list[Pace]:
    settings = [Setting("torch", "demo", None, size) for size in sizes]
    measured = ModelBench(DEMO, settings, budget, side=84, n_images=lambda _: 3, say=lines.append)
    return measured.measure(2)


def test_what_there_is_no_time_for_is_computed_from_single_passes_and_said() -> None:
    lines: list[str] = []
    paces = run_bench(Spent(1000.0, lines=lines), lines, 1, 2)

    assert [pace.is_measured for pace in paces] == [False, False]
    assert all(pace.tokens_per_s == pytest.approx(4 * pace.rows_per_s) for pace in paces)
    told = "\n".join(lines)
    assert all(f"batch_size={size} was not run for lack of time" in told for size in (1, 2))


def test_a_budget_that_is_spent_ends_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl_kit.torch_backend.model_runner import TorchModelRunner

    control = Budget.control
    given: list[Any] = []

    def kept(self: Budget) -> Any:
        given.append(control(self))
        return given[-1]

    decode = TorchModelRunner.decode

    def spending(self: Any, *step: Any) -> Any:
        if any("step:" in line for line in lines):  # in the first whole run
            given[-1][0].cancel.set()
        return decode(self, *step)

    monkeypatch.setattr(Budget, "control", kept)
    monkeypatch.setattr(TorchModelRunner, "decode", spending)
    lines: list[str] = []
    paces = run_bench(Budget(1000.0), lines, 1)

    assert "batch_size=1 did not end within the budget." in lines
    assert not paces[0].is_measured


def test_first_passes_count_where_the_budget_ends_before_others(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = ModelBench._probe
    sides: list[int] = []

    def once(self: ModelBench, n_rows: int, side: int) -> None:
        sides.append(side)
        if len(sides) == 1:
            probe(self, n_rows, side)

    monkeypatch.setattr(ModelBench, "_probe", once)
    lines: list[str] = []
    paces = run_bench(Spent(1000.0, lines=lines), lines, 1)

    assert len(sides) > 1
    assert [pace.is_measured for pace in paces] == [False]
    assert paces[0].rows_per_s > 0


def test_a_budget_that_loading_spends_gives_a_word_and_no_figures() -> None:
    lines: list[str] = []

    assert run_bench(Budget(1e-9), lines, 1) == []
    assert lines == ["Loading took longer than the budget of 1e-09 s. Pass a larger --budget."]


def test_what_was_timed_is_found_by_a_plan_of_the_same_model() -> None:
    spec = make_spec(Config(**DEMO))
    assert calibration_of(spec) is None
    run_bench(Budget(1000.0), [], 1, 2)

    found = calibration_of(spec)
    assert found is not None
    assert set(found.decode_s) == {1, 2}
    assert all(seconds > 0 for seconds in (*found.vision_s.values(), *found.prefill_s.values()))
    plan = pd.Series([np.zeros((84, 84, 3), np.uint8)], dtype=object).vl.plan(**DEMO)
    assert plan.time is not None
    assert calibration_of(make_spec(Config(**{**DEMO, "threads": 1}))) is None, "another number of threads"


def test_an_export_and_numbers_of_threads_are_tried_beside_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(to_onnx("demo", tmp_path / "onnx", verify_rows=0).path)
    asked = ["--model-name", "demo", "--dtype", "float32", "--export", out, "--thread-counts", "1,2", "--sizes", "3"]

    assert main(["bench", *asked, *SMALL]) == 0

    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    tried = [line.split()[:3] for line in lines[2:-1]]
    assert tried == [["torch", "1", "3"], ["torch", "2", "3"], ["onnx", "1", "3"], ["onnx", "2", "3"]]


def test_the_smallest_of_nearly_equal_sizes_is_advised_and_a_faster_one_otherwise() -> None:
    level = [paced("torch", 1, 1.0), paced("torch", 4, 1.97), paced("torch", 8, 2.0)]

    assert advise(level).batch_size == 4
    assert advise([*level, paced("torch", 16, 3.0)]).batch_size == 16
    assert advise([*level, paced("onnx", 4, 2.01)]).backend == "onnx", "the faster of the same size"


def paced(backend: str, batch_size: int, rows_per_s: float) -> Pace:
    return Pace(Setting(backend, "a model", None, batch_size), rows_per_s, 9 * rows_per_s)


@pytest.mark.parametrize(
    "wrong", [["--batch-size", "4"], ["--backend", "ech"], ["--threads", "1", "--thread-counts", "1,2"]]
)
def test_options_that_make_no_sense_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--pictures", "1", *wrong]) == 2
    assert "qwenvl-kit: " in capsys.readouterr().err
