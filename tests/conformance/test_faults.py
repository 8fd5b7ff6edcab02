"""Each planted fault is caught and named by its layer, and by no other; the healthy engine passes."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.faulty_engine import FAULTS, HEALTHY, Fault, planted

from qwenvl_kit.conformance.cases import Round
from qwenvl_kit.conformance.engines import Reference
from qwenvl_kit.conformance.layers import Judge, Verdict
from qwenvl_kit.demo.exported import REPETITION_PENALTY

Setup = tuple[Reference, dict[str, Round], Path]


@pytest.fixture
def judged(reference: Reference, rounds: dict[str, Round], exported: tuple[Path, ...], tmp_path: Path):
    def judge(fault: Fault) -> list[Verdict]:
        with planted(fault, exported[0], tmp_path / "changed") as engine:
            found = {name: engine.ask(one) for name, one in rounds.items()}
        # outside of the context: the reference runs on torch too
        return Judge(rounds, found, reference, tolerance=1e-3, default_penalty=REPETITION_PENALTY).verdicts()

    return judge


def failed(verdicts: list[Verdict]) -> list[str]:
    return [one.layer for one in verdicts if one.outcome == "fail"]


def test_a_healthy_engine_passes_every_layer(judged) -> None:
    verdicts = judged(HEALTHY)

    assert {one.outcome for one in verdicts} == {"pass"}, [one for one in verdicts if one.outcome != "pass"]
    assert len(verdicts) == 16


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_named_by_its_layer_alone(judged, fault: Fault) -> None:
    verdicts = judged(fault)

    assert failed(verdicts) == [fault.layer]


def test_at_least_twelve_faults_of_twelve_layers_are_planted() -> None:
    assert len(FAULTS) >= 12
    assert len({fault.layer for fault in FAULTS}) >= 12
