"""Measure the prompt phase relative to the machine's peak for matrix products, by the width of the layers.

``python tests/benchmarks/prompt_phase.py [--backend onnx]`` measures the model of the other benchmarks, and one
whose layers are fewer and as wide as those of the published 3B; exit status 1 where 80 % are missed. Two minutes on two
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from contenders import MODEL, Ours, Rows, make_images, make_model
from contest import RESULTS, machine, phases, spread

from qwenvl_kit.demo.training.tokenizer import build_tokenizer
from qwenvl_kit.export import to_onnx

WANTED = 0.8
WIDE = "layers of the 3B: 4 of text, 2048 wide, 16/2 heads, FFN 11008; 8 of vision, 1280 wide, 16 heads, FFN 3420"


def main() -> int:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=("torch", "onnx"), default="torch")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    found: dict[str, Any] = {"machine": machine(), "wanted": WANTED, "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in ((MODEL, make_model), (WIDE, make_wide)):
            path = make(Path(folder) / name[:8])
            if asked.backend == "onnx":
                path = to_onnx(str(path), Path(folder) / f"{name[:8]}-onnx", verify_rows=0).path
            shares = _shares(Ours(asked.backend, path), asked.turns)
            found["models"][name] = shares
            print(f"{name}: {shares['median']:.0%} ({shares['min']:.0%} to {shares['max']:.0%}) of the peak")
    file = RESULTS / f"prompt_phase-{asked.backend}.json"
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(shares["median"] >= WANTED for shares in found["models"].values()) else 1


def make_wide(folder: Path) -> Path:
    """Write a random checkpoint whose layers are those of Qwen2.5-VL-3B, though fewer."""
    from helpers.checkpoints import make_published  # of the tests' own tools, found once `contenders` is imported

    return make_published(
        folder,
        vocab_size=len(build_tokenizer()),
        hidden=2048,
        layers=4,
        tied=True,
        max_pixels=448 * 448,
        text={
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "intermediate_size": 11008,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        },
        vision={
            "hidden_size": 1280,
            "depth": 8,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [7],
        },
    )


def _shares(ours: Ours, n_turns: int) -> dict[str, float]:
    rows = Rows(make_images(4), ["Describe this picture."] * 4, [2] * 4)
    ours.answer(rows, 4)
    return spread([phases(ours, rows)["prompt_phase_share_of_gemm_peak"] for _ in range(n_turns)])


if __name__ == "__main__":
    raise SystemExit(main())
