"""An image of more than a minute is told once, as soon as it can be known, and with the size that is shorter."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qwenvl_kit import CostWarning
from qwenvl_kit.calibration import Calibration
from qwenvl_kit.inference.backend import RunControl
from qwenvl_kit.inference.long_images import LongImages

CPU = torch.device("cpu")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def row(n_tokens: int, at: int = 0) -> Any:
    """A row of one image of so many visual tokens, of 784 pixels each."""
    grid = torch.tensor([[1, 2, 2 * n_tokens]])
    image = SimpleNamespace(size=(28, 28 * n_tokens))
    request = SimpleNamespace(row=at, images=[image])
    ids = list(range(n_tokens + 20))
    return SimpleNamespace(grid=grid, prompt_ids=ids, request=request, n_visual_in=lambda _: n_tokens)


def run_pass(watch: LongImages, clock: Clock, stage: Any, layers: int, seconds: float) -> None:
    for layer in range(1, layers + 1):
        watch.control.report(stage, layer, layers)
        clock.now += seconds / layers


def test_an_image_is_told_once_its_first_layer_is_done() -> None:
    notes: list[str] = []
    clock = Clock()
    watch = LongImages(RunControl(note=notes.append), CPU, clock=clock)
    watch.begin([row(15_000, at=7)])

    with pytest.warns(CostWarning, match="Row 7 takes about 39 min 0 s .* 15000 visual tokens"):
        run_pass(watch, clock, "encode", 32, 39 * 60)

    assert len(notes) == 1
    (pixels,) = re.findall(r"max_pixels=(\d+) for about 20 s", notes[0])
    assert int(pixels) // 784 == 15_000 * 20 // (39 * 60)


def test_the_next_long_image_is_told_before_its_pass_from_the_pace_of_earlier_ones() -> None:
    notes: list[str] = []
    clock = Clock()
    watch = LongImages(RunControl(note=notes.append), CPU, clock=clock)
    watch.begin([row(256)])
    run_pass(watch, clock, "encode", 32, 4.0)
    run_pass(watch, clock, "prefill", 36, 2.0)
    assert not notes

    with pytest.warns(CostWarning, match="Row 1 "):
        watch.begin([row(256), row(10_000, at=1)])


def test_what_bench_measured_tells_the_first_image_beforehand() -> None:
    measured = Calibration(
        device="d", fingerprint="f", model="m", backend="torch", dtype="float32",
        vision_s={1000: 5.0}, prefill_s={250: 2.5}, decode_s={1: 0.1},
    )  # fmt: skip
    watch = LongImages(RunControl(), CPU, measured)

    watch.begin([row(250)])
    with pytest.warns(CostWarning, match="takes about 3 min"):
        watch.begin([row(6000)])


def test_it_is_told_once_in_a_run_and_not_of_many_small_images() -> None:
    clock = Clock()
    watch = LongImages(RunControl(), CPU, clock=clock)
    watch.begin([row(64) for _ in range(32)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_pass(watch, clock, "encode", 32, 90.0)  # four images in a pass
        run_pass(watch, clock, "prefill", 36, 300.0)  # of 32 prompts

    with pytest.warns(CostWarning):
        watch.begin([row(20_000)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.begin([row(20_000)])


def test_reports_are_passed_on() -> None:
    seen: list[tuple[str, int, int]] = []
    watch = LongImages(RunControl(report=lambda *one: seen.append(one)), CPU)

    watch.control.report("encode", 3, 32)

    assert seen == [("encode", 3, 32)]
