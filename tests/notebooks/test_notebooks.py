"""The notebooks are shipped as they ran: with outputs, small, and compared output by output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 1_000_000


def code_cells(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code" and cell.source]


def test_there_are_notebooks() -> None:
    assert {"01_quickstart", "02_dtypes", "03_resize", "04_sampling"} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_was_run_in_order_and_most_show_something(path: Path) -> None:
    cells = code_cells(path)

    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) >= len(cells) / 2
    # What is compared: nbval leaves pictures and marked cells out.
    compared = [cell for cell in cells if cell.outputs and "NBVAL_IGNORE_OUTPUT" not in cell.source]
    assert len(compared) >= 4
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_file_is_small_and_says_how_to_switch_to_a_real_model(path: Path) -> None:
    assert path.stat().st_size <= MAX_BYTES
    # A job's script names its model itself, where its users look for it.
    assert any(cell.source.startswith("MODEL = ") or '"model_name": "demo"' in cell.source for cell in code_cells(path))


@pytest.mark.slow
def test_altering_an_output_fails(tmp_path: Path) -> None:
    notebook = nbformat.read(FOLDER / "01_quickstart.ipynb", as_version=4)
    cell = next(cell for cell in notebook.cells if "6 of 6" in str(cell.get("outputs", "")))
    cell.outputs[0].text = cell.outputs[0].text.replace("6 of 6", "5 of 6")
    nbformat.write(notebook, tmp_path / "altered.ipynb")
    options = ("-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=120")
    sanitize = f"--nbval-sanitize-with={FOLDER / 'sanitize.cfg'}"

    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, sanitize, "altered.ipynb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 1
    assert "1 failed" in done.stdout
