"""``qwenvl-kit bench``: every size is tried, and the advice follows from what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenvl_kit.cli import main
from qwenvl_kit.cli.bench import Pace, Setting, advise
from qwenvl_kit.export import to_onnx

SMALL = ["--pictures", "3", "--side", "84", "--rounds", "1", "--max-caption-length", "4"]


def test_each_batch_size_is_measured_and_one_of_them_is_advised(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model-name", "demo", "--dtype", "float32", "--sizes", "1,3", *SMALL]) == 0

    *_, one, three, advice = capsys.readouterr().out.splitlines()
    for line, size in ((one, 1), (three, 3)):
        backend, threads, batch_size, pictures, tokens = line.split()
        assert (backend, threads, int(batch_size)) == ("torch", "auto", size)
        assert float(pictures) > 0
        assert float(tokens) == pytest.approx(4 * float(pictures), rel=0.02), "four tokens a picture"
    assert advice in [f"Set backend='torch', model_name='demo', threads=None, batch_size={size}." for size in (1, 3)]


def test_an_export_and_numbers_of_threads_are_tried_beside_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(to_onnx("demo", tmp_path / "onnx", verify_rows=0).path)
    asked = ["--model-name", "demo", "--dtype", "float32", "--export", out, "--thread-counts", "1,2", "--sizes", "3"]

    assert main(["bench", *asked, *SMALL]) == 0

    tried = [line.split()[:3] for line in capsys.readouterr().out.splitlines()[-5:-1]]
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
