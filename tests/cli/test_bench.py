"""``qwenvl-kit bench``: every size is tried, and the advice follows from what was measured."""

from __future__ import annotations

import pytest

from qwenvl_kit.cli import main
from qwenvl_kit.cli.bench import Pace, advise


def test_each_batch_size_is_measured_and_one_of_them_is_advised(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--sizes", "1,3", "--pictures", "3", "--side", "84", "--rounds", "1", "--max-caption-length", "4"]

    assert main(["bench", "--model-name", "demo", "--dtype", "float32", *options]) == 0

    *_, one, three, advice = capsys.readouterr().out.splitlines()
    for line, size in ((one, 1), (three, 3)):
        assert int(line.split()[0]) == size
        assert float(line.split()[1]) > 0
        assert float(line.split()[2]) == pytest.approx(4 * float(line.split()[1]), rel=0.02), "four tokens a picture"
    assert advice in ("Set batch_size=1.", "Set batch_size=3.")


def test_the_smallest_of_nearly_equal_sizes_is_advised_and_a_faster_one_otherwise() -> None:
    level = [Pace(1, 1.0, 9.0, ()), Pace(4, 1.97, 18.0, ()), Pace(8, 2.0, 18.0, ())]

    assert advise(level) == 4
    assert advise([*level, Pace(16, 3.0, 27.0, ())]) == 16


@pytest.mark.parametrize("wrong", [["--batch-size", "4"], ["--backend", "ech"]])
def test_options_that_make_no_sense_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--pictures", "1", *wrong]) == 2
    assert "qwenvl-kit: " in capsys.readouterr().err
