"""Compiled steps have one shape, are recorded anew for new memory, and a failed compilation names the fix."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qwenvl_kit.torch_backend import compiled_decode
from qwenvl_kit.torch_backend.compiled_decode import CompiledSteps


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes of the steps that were computed, in which torch compiles nothing."""
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    return []


def steps(shapes: list[tuple[int, int]], *, uses_graphs: bool = False) -> CompiledSteps:
    def step(ids: Tensor, positions: Tensor, lengths: Tensor, max_len: int) -> Tensor:
        shapes.append((len(ids), max_len))
        return torch.stack([ids, positions, lengths], dim=1).float()

    return CompiledSteps(step, uses_graphs=uses_graphs)


def test_every_step_has_the_shape_of_the_cache_and_gives_the_rows_at_hand(shapes: list[tuple[int, int]]) -> None:
    compiled = steps(shapes)
    assert [compiled.resize_cache(n, 128) for n in (0, 1, 2, 5)] == [0, 2, 2, 5]

    for rows in ([7], [7, 8, 9], [1, 2, 3, 4, 5]):
        ids = torch.tensor(rows)
        logits = compiled(ids, ids + 10, ids + 20, 64)
        assert logits.tolist() == [[row, row + 10, row + 20] for row in rows]

    assert set(shapes) == {(5, 128)}
    assert compiled.warm_up_s > 0


def test_new_memory_is_recorded_anew(shapes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(
        compiled_decode, "CudaGraphRunner", lambda function, inputs: made.append(len(inputs[0])) or function
    )
    compiled = steps(shapes, uses_graphs=True)
    ids = torch.tensor([1, 2])
    for size in (4, 4, 8):
        compiled.resize_cache(size, 64)
        compiled(ids, ids, ids, 3)
        compiled(ids, ids, ids, 3)

    assert made == [4, 4, 8]


WITHOUT_A_COMPILER = """
from torch import tensor
from qwenvl_kit.torch_backend.compiled_decode import CompiledSteps
compiled = CompiledSteps(lambda ids, positions, lengths, max_len: (ids + positions * lengths).float() * max_len)
compiled.resize_cache(3, 37)
compiled(tensor([1]), tensor([2]), tensor([3]), 4)
"""


def test_where_torch_cannot_compile_the_message_says_what_to_install(tmp_path: Path) -> None:
    without = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}

    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_COMPILER], env=without, capture_output=True, text=True, timeout=120
    )

    assert ended.returncode == 1
    message = ended.stderr.splitlines()[-1]  # what a user reads last
    assert re.search(r"ConfigError: torch_compile=True: .*[Cc]ompiler.*\. Install a C\+\+", message)
