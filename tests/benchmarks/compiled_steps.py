"""Measure compiled decode steps: the first one, and the others relative to eager mode.

``python tests/benchmarks/compiled_steps.py``, with the model of the other benchmarks in float32; a minute on two cores.
The first step is that of a machine where torch has compiled nothing yet: its own cache is set aside.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from contenders import MODEL, make_model
from contest import RESULTS, machine

from qwenvl_kit import Config
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.inference.model_runner import ModelRunner, PrefillChunk

N_TOKENS = 310  # that each row holds: an image of 448 pixels, a question, half an answer
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> int:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    found: dict[str, Any] = {"model": MODEL, "machine": machine(), "device": DEVICE, "batches": {}}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "compiled")
        model = make_model(Path(folder) / "model")
        plain, compiled = (_load(model, compiles=compiles) for compiles in (False, True))
        for n_rows in (4, 16):
            found["batches"][n_rows] = measured = _measure(plain, compiled, n_rows, asked.steps)
            print(f"{n_rows} rows: {measured}")
    (RESULTS / f"compiled_steps-{DEVICE}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def _load(model: Path, *, compiles: bool) -> ModelRunner:
    config = Config(model_name=str(model), dtype="float32", use_flash_attention_2=False, torch_compile=compiles)
    backend: Any = make_spec(config).load()
    model_runner: ModelRunner = backend.model_runner
    return model_runner


def _measure(plain: ModelRunner, compiled: ModelRunner, n_rows: int, n_steps: int) -> dict[str, float]:
    held = torch.full((n_rows,), N_TOKENS, device=DEVICE)
    said = torch.arange(5, 5 + n_rows, device=DEVICE)
    for model_runner in (plain, compiled):
        model_runner.resize_cache(n_rows, 384)
        ids, positions = torch.arange(N_TOKENS, device=DEVICE) % 800 + 5, torch.arange(N_TOKENS, device=DEVICE)
        model_runner.prefill([PrefillChunk(slot, ids, positions.expand(3, -1)) for slot in range(n_rows)])
    first = _seconds(compiled, said, held)
    _seconds(plain, said, held)
    seconds = [(_seconds(compiled, said, held), _seconds(plain, said, held)) for _ in range(n_steps)]
    ours, others = (statistics.median(some) for some in zip(*seconds, strict=True))
    return {
        "first_step_s": round(first, 1),
        "step_ms": round(ours * 1e3, 2),
        "not_compiled_ms": round(others * 1e3, 2),
        "ratio": round(ours / others, 2),
    }


def _seconds(model_runner: ModelRunner, said: torch.Tensor, held: torch.Tensor) -> float:
    started = time.perf_counter()
    model_runner.decode(said, held, held, N_TOKENS + 1).sum().item()  # waits for a GPU
    return time.perf_counter() - started


if __name__ == "__main__":
    raise SystemExit(main())
