"""Measure an ONNX export: time and memory of the export, decode step, whole captions.

Run it by hand on a quiet machine: ``python tests/benchmarks/onnx_export.py``. transformers' ``generate`` runs in turn
with the export in the same process; the last result is kept in ``results/onnx_export.json``. Exit status 1 where a
target is missed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from contenders import MODEL, Card, Ours, Rows, make_images, make_model
from contest import RESULTS, limits, machine, spread
from transformers import GenerationConfig

from qwenvl_kit.export import to_onnx
from qwenvl_kit.inference.model_runner import PrefillChunk

WANTED = {"export_s": 60.0, "memory_over_weights": 4.0, "step_ratio": 3.0, "captions_ratio": 1.5}
BATCH, N_TOKENS, N_PROMPT = 4, 64, 300


def main() -> int:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "model")
        made = _in_a_process(_export, model, Path(folder) / "onnx")
        found = made | _compare(model, Path(folder) / "onnx", asked)
    print(MODEL)
    print(f"  export {found['export_s']:.1f} s, peak memory {found['memory_over_weights']:.2f} × the weights")
    print(f"  decode step at batch {BATCH}: {found['step_ms']} ms; generate: {found['generate_step_ms']} ms")
    print(f"  ratio of steps: {found['step_ratio']}; of whole captions: {found['captions_ratio']}")
    print(f"  reading the weights once: {found['reading_weights_ms']} ms")
    missed = [name for name, wanted in WANTED.items() if not _reaches(name, found[name], wanted)]
    print(f"  missed: {', '.join(f'{name} (wanted {WANTED[name]})' for name in missed) or 'nothing'}")
    RESULTS.mkdir(exist_ok=True)
    kept = {**found, "wanted": WANTED, "missed": missed, "model": MODEL, "machine": machine()}
    (RESULTS / "onnx_export.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if missed or found["differing_answers"] else 0


def _reaches(name: str, found: Any, wanted: float) -> bool:
    return bool(found["median"] >= wanted) if name.endswith("ratio") else bool(found <= wanted)


def _export(model: Path, out: Path) -> dict[str, float]:
    """In a process of its own: memory beyond what the imports take, over the weights of the export."""
    import qwenvl_kit.onnx_backend.export.exporter  # noqa: F401  # its imports are not what is measured

    before = _peak_bytes()
    started = time.perf_counter()
    to_onnx(model, out, verify_rows=0)
    seconds = time.perf_counter() - started
    return {"export_s": seconds, "memory_over_weights": (_peak_bytes() - before) / (out / "weights.bin").stat().st_size}


def _peak_bytes() -> int:
    """Of this process alone; getrusage's figure is inherited from the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def _in_a_process(work: Any, *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def _compare(model: Path, onnx: Path, asked: argparse.Namespace) -> dict[str, Any]:
    ours, card = Ours("onnx", onnx), Card(model)
    rows = Rows(make_images(8), ["Describe this picture."] * 8, [N_TOKENS] * 8)
    steps: dict[str, list[float]] = {"ours": [], "generate": []}
    whole: dict[str, list[float]] = {"ours": [], "generate": []}
    ours.answer(rows[:2], 2), card.answer(rows[:2], 2)
    differing = 0
    for _ in range(asked.turns):
        steps["ours"].append(_our_step(ours.backend.model_runner))
        steps["generate"].append(_generate_step(card.model))
        said = []
        for name, one in (("ours", ours), ("generate", card)):
            ours.backend.encoder_cache.clear()
            started = time.perf_counter()
            said.append(one.answer(rows, BATCH))
            whole[name].append(time.perf_counter() - started)
        differing = max(differing, sum(a != b for a, b in zip(*said, strict=True)))
    ours.backend.model_runner.resize_cache(0, 0)
    weights = (onnx / "weights.bin").stat().st_size
    return {
        "step_ms": spread([1e3 * one for one in steps["ours"]]),
        "generate_step_ms": spread([1e3 * one for one in steps["generate"]]),
        "step_ratio": spread([b / a for a, b in zip(steps["ours"], steps["generate"], strict=True)]),
        "captions_ratio": spread([b / a for a, b in zip(whole["ours"], whole["generate"], strict=True)]),
        "differing_answers": differing,
        "reading_weights_ms": round(weights / limits()["gbytes_per_s"] / 1e6, 1),
    }


def _our_step(model_runner: Any) -> float:
    """Seconds of a step over 64 of them, after a prompt of 300 tokens in each of four rows."""
    ids, positions = torch.arange(N_PROMPT) % 900, torch.arange(N_PROMPT).expand(3, -1)
    model_runner.resize_cache(BATCH, N_PROMPT + N_TOKENS + 1)
    logits = model_runner.prefill([PrefillChunk(slot, ids, positions) for slot in range(BATCH)])
    started = time.perf_counter()
    for at in range(N_PROMPT, N_PROMPT + N_TOKENS):
        there = torch.full((BATCH,), at)
        logits = model_runner.decode(logits.argmax(dim=-1), there, there, at + 1)
    return (time.perf_counter() - started) / N_TOKENS


def _generate_step(model: Any) -> float:
    """The same of transformers' generate: what 64 more tokens take than one."""
    ids = (torch.arange(N_PROMPT) % 900).repeat(BATCH, 1)
    took = []
    for n_tokens in (1, N_TOKENS + 1):
        config = GenerationConfig(do_sample=False, max_new_tokens=n_tokens, eos_token_id=None, pad_token_id=0)
        started = time.perf_counter()
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        took.append(time.perf_counter() - started)
    return (took[1] - took[0]) / N_TOKENS


if __name__ == "__main__":
    raise SystemExit(main())
