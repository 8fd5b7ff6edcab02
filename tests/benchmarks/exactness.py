"""Measure the distance of float32 logits from float64: transformers, this kit on torch, and an export.

``python tests/benchmarks/exactness.py --model DIR --export DIR`` with the model that ``contenders.py DIR`` wrote and an
export of it. A difference between two backends that is no larger than these says nothing about either.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from contenders import MODEL, Ours, Rows, _requests, make_images
from contest import RESULTS, machine
from transformers import Qwen2_5_VLForConditionalGeneration

from qwenvl_kit.inference.model_runner import ModelRunner, PrefillChunk
from qwenvl_kit.torch_backend.model_runner import TorchModelRunner


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--images", type=int, default=4)
    asked = parser.parse_args()
    n = asked.images
    ours, rows = Ours("torch", asked.model), Rows(make_images(n), ["What is it?"] * n, [1] * n)
    wanted = _logits(TorchModelRunner(_load(asked.model, torch.float64)), ours, rows, torch.float64)
    model_runners: dict[str, ModelRunner] = {
        "transformers": TorchModelRunner(_load(asked.model, torch.float32)),
        "qwenvl_kit, torch": ours.backend.model_runner,
        "qwenvl_kit, ONNX Runtime": Ours("onnx", asked.export).backend.model_runner,
    }
    far = {
        name: (_logits(model_runner, ours, rows, torch.float32) - wanted).abs()
        for name, model_runner in model_runners.items()
    }
    found = {
        "model": MODEL,
        "machine": machine(),
        "largest_logit": float(wanted.abs().max()),
        "from_float64": {name: {"max": float(one.max()), "mean": float(one.mean())} for name, one in far.items()},
    }
    print(json.dumps(found, indent=1))
    (RESULTS / "exactness.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _load(folder: Path, dtype: torch.dtype) -> Any:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    return model.eval()


def _logits(model_runner: ModelRunner, ours: Ours, rows: Rows, dtype: torch.dtype) -> torch.Tensor:
    """Logits (n, V) of each prompt's last token."""
    processor = ours.backend.tokenization.processor
    sequences = [processor.encode(request) for request in _requests(rows)]
    patches = torch.cat([processor.patchify(image) for one in sequences for image in one.request.images]).to(dtype)
    features = model_runner.encode_images(patches, torch.cat([one.grid for one in sequences]))
    chunks = [
        PrefillChunk(slot, one.ids, one.positions(), image_features=visual)
        for slot, (one, visual) in enumerate(zip(sequences, features, strict=True))
    ]
    model_runner.resize_cache(len(chunks), max(len(chunk.ids) for chunk in chunks) + 1)
    return model_runner.prefill(chunks).double()


if __name__ == "__main__":
    main()
