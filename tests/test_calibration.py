"""What `bench` measured is found again for the same model on the same machine, and for no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenvl_kit.calibration import Calibration, device_label, read_calibration, write_calibration


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def measured(**changes: object) -> Calibration:
    plain = {
        "device": "a CPU, 2 threads",
        "fingerprint": "f0",
        "model": "demo",
        "backend": "torch",
        "dtype": "float32",
        "vision_s": {256: 0.5, 1024: 2.5},
        "prefill_s": {100: 1.0},
        "decode_s": {1: 0.1, 4: 0.2},
    }
    return Calibration(**{**plain, **changes})  # type: ignore[arg-type]


def test_a_calibration_is_read_as_it_was_written() -> None:
    written = measured()
    write_calibration(written)

    assert read_calibration("f0", "a CPU, 2 threads") == written


def test_another_model_and_another_machine_have_none() -> None:
    write_calibration(measured())

    assert read_calibration("f1", "a CPU, 2 threads") is None
    assert read_calibration("f0", "a CPU, 4 threads") is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"device": 1}', None])
def test_a_damaged_file_is_no_calibration(damage: str | None) -> None:
    file = write_calibration(measured())
    file.write_text(file.read_text().replace("2.5", "-1") if damage is None else damage)

    assert read_calibration("f0", "a CPU, 2 threads") is None


def test_a_later_measurement_replaces_the_file() -> None:
    write_calibration(measured())
    file = write_calibration(measured(decode_s={1: 0.05}))

    found = read_calibration("f0", "a CPU, 2 threads")
    assert found is not None
    assert found.decode_s == {1: 0.05}
    assert list(file.parent.iterdir()) == [file], "no part of a file is left"


def test_large_images_cost_more_than_in_proportion_and_small_fixed_costs_never_less_than_nothing() -> None:
    assert measured().seconds_of_image(2048) > 2 * 2.5
    assert measured(vision_s={256: 0.9, 1024: 1.0}).seconds_of_image(2048) == pytest.approx(2.0)
    assert measured(vision_s={100: 0.001, 1000: 1.0}).seconds_of_image(1) >= 0


def test_a_gpu_is_known_by_its_name_and_a_cpu_by_its_threads() -> None:
    assert device_label("cuda:1", gpu_name="NVIDIA H200") == "NVIDIA H200"
    assert device_label("cuda:0+cpu", gpu_name="NVIDIA H200") == "cuda:0+cpu (NVIDIA H200)"
    assert device_label("cpu", threads=3).endswith(", 3 threads")
