"""On a small Ray cluster: the same answers, killed workers that cost nothing, and wishes refused at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "ray_script.py"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(gallery: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script saw; one cluster serves all tests, since starting it takes seconds."""
    written = tmp_path_factory.mktemp("ray") / "seen.json"
    command = [sys.executable, "-X", "faulthandler", str(SCRIPT), str(written), *gallery.urls]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert written.exists(), done.stderr[-3000:]
    found: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))
    return found


def test_a_frame_of_odd_cells_comes_back_as_from_one_process(seen: dict[str, Any]) -> None:
    odd = seen["odd_cells"]

    assert odd["same"]
    assert odd["attrs"]
    assert set(odd["statuses"]) == {"ok", "null_image", "error"}
    assert not odd["secret"]


def test_the_demo_model_says_the_same_here_on_workers_and_through_the_operator(
    seen: dict[str, Any], gallery: Any
) -> None:
    here = seen["demo"]["here"]

    assert seen["demo"]["there"] == here
    assert sorted(map(str, seen["demo"]["operator"])) == sorted(map(str, here))
    assert sum(said == true for said, true in zip(here, gallery.captions, strict=False)) >= 4


def test_answers_of_a_form_are_the_same_here_on_workers_and_through_the_operator(seen: dict[str, Any]) -> None:
    forms = seen["forms"]

    assert forms["there"] == forms["here"]
    assert forms["operator"] == forms["here"][0]


def test_ten_thousand_rows_keep_their_order_and_are_counted_once(seen: dict[str, Any]) -> None:
    assert seen["ten_thousand"] == {"right": 10_000, "told": 10_000, "told_once": 10_000}


@pytest.mark.parametrize("how", ["killed_by_pid", "killed_by_ray"])
def test_a_killed_worker_costs_no_row(seen: dict[str, Any], how: str) -> None:
    assert seen[how] == {"right": 400, "told": 400, "told_once": 400}


def test_a_killed_worker_of_the_operators_job_costs_no_row(seen: dict[str, Any]) -> None:
    assert seen["operator_killed"] == {"killed": 1, "rows": 400, "right": 400}


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("gpus", "exceeds the GPUs that there are (0). Pass num_gpus=0"),
        ("workers", "exceeds the CPUs of the cluster (2). Pass concurrency=2"),
        ("rank", "This process sees none. Pass rank=None"),
        ("native", "which Daft cannot change"),
        ("model", "ModelNotFound: model_name='no/such'"),
        ("operator_rank", "Pass rank=0 or rank=None"),
        ("operator_gpus", "exceeds the GPUs that there are (0). Pass num_gpus=0"),
    ],
)
def test_impossible_wishes_are_refused_with_what_to_pass(seen: dict[str, Any], wish: str, said: str) -> None:
    assert said in seen["refusals"][wish]
