"""A large image is computed in blocks of rows: bounded memory, and a run that can be cancelled within a block."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from qwenvl_kit.inference import packing
from qwenvl_kit.inference.backend import RunControl
from qwenvl_kit.inference.cancellation import Cancelled, cancellable
from qwenvl_kit.torch_backend.row_blocks import by_rows, max_queries


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_BLOCK_ROWS", {"cpu": 4})


def test_a_function_sees_at_most_a_block_of_rows() -> None:
    sizes: list[int] = []

    def function(left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
        sizes.append(len(left))
        return left + right, left * 2

    rows = torch.arange(10.0)
    total, double = by_rows(function, rows, rows)

    assert sizes == [4, 4, 2]
    assert torch.equal(total, rows + rows)
    assert torch.equal(double, 2 * rows)


def test_a_cancelled_run_ends_before_the_next_block() -> None:
    control = RunControl(threading.Event())
    sizes: list[int] = []

    def function(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        control.cancel.set()
        return rows

    with cancellable(control), pytest.raises(Cancelled):
        by_rows(function, torch.zeros(10, 2))

    assert sizes == [4]


def test_a_call_of_attention_over_a_large_image_takes_about_a_second() -> None:
    n_patches = 12_845_056 // 14**2
    flops = 4 * max_queries(n_patches, torch.device("cpu")) * n_patches * 1280  # of the published towers

    assert flops < 1e11, "two cores compute about that much in a second"
