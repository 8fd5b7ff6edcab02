"""Measure where the time goes on a GPU, against the card's own limits and transformers' generate; one JSON at the end.

``tests/gpu/run`` is the one command: it proves the answers and then measures the 3B and the 7B. Alone, one shape is
``PYTHONPATH=.:tests python tests/gpu/bench.py --shape 7b --out bench-7b.json``. Random weights cost what trained ones
do. ``QWENVL_KIT_GPU=cpu … --shape tiny`` tries all parts on a CPU, where their figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from gpu.measure import CUDA, DEVICE, Busy, in_ms, peak_gib, reset_peak, sdp, seconds_of, wait
from gpu.shapes import SHAPES, make_checkpoint
from gpu.steps import fill, profile_of, times_of_steps
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

import qwenvl_kit
from qwenvl_kit import Config
from qwenvl_kit.checkpoints.resolve import ResolvedConfig
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.inference.sampler import Sampler
from qwenvl_kit.inference.sequence import Sequence
from qwenvl_kit.options import DEFAULT_PROMPT
from qwenvl_kit.types import LoadedImage, Request

Figures = dict[str, Any]
_IN_MEMORY = Path("/dev/shm")
_ROWS, _LENGTHS = ((4, 32, 128), (400, 1400)) if CUDA else ((2, 3), (20,))
_SIZES = ((448, 448), (1008, 1008), (980, 1036), (2016, 2016), (3024, 4032)) if CUDA else ((112, 140),)
_PROMPTS = ((1, 1320), (4, 1320), (1, 16000), (8, 300)) if CUDA else ((1, 30),)
_SIDE, _N_TOKENS = (1008, 128) if CUDA else (112, 4)
_PENALTY = {"repetition_penalty": 1.05}
_SAMPLED = {**_PENALTY, "do_sample": True, "seed": 1}


def floor(_: Path, shape: str) -> Figures:
    """Copy and multiply: what a step and a prompt cannot be faster than."""
    size = 1 << (30 if CUDA else 22)
    source = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copy_s = seconds_of(lambda: target.copy_(source))[1]
    n = 8192 if CUDA else 512
    matrix = torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16)
    product_s = seconds_of(lambda: matrix @ matrix)[1]
    text, _ = SHAPES[shape]
    width, inner = text["hidden_size"], text["intermediate_size"]
    keys = text["num_key_value_heads"] * width // text["num_attention_heads"]
    layer = 2 * width * width + 2 * width * keys + 3 * width * inner
    weights = text["num_hidden_layers"] * layer + width * text["vocab_size"]
    return {
        "copy_GBps": round(2 * size / copy_s / 1e9),
        "bf16_TFLOPs": round(2 * n**3 / product_s / 1e12, 1),
        "step_ms": round(1e3 * 2 * weights / (2 * size / copy_s), 2),
    }


def step(folder: Path, _: str, **options: Any) -> Figures:
    """Decode at growing lengths, as a run does: a kernel that plans per length shows in every step."""
    with loaded(folder, **options) as backend:
        runner, found = backend.model_runner, Figures()
        for length, n_rows in itertools.product(_LENGTHS, _ROWS):
            fill(runner, n_rows, length)
            found[f"{n_rows} rows, {length} tokens"] = in_ms(times_of_steps(runner, n_rows, length, 24))
        if CUDA and not options:
            with sdp(cudnn=True):
                found["with cuDNN allowed"] = in_ms(times_of_steps(runner, _ROWS[0], _LENGTHS[-1], 8))
            found |= profile_of(runner, _ROWS[-1], _LENGTHS[-1])
        found["warm_up_s"] = round(runner.warm_up_s, 1)
    return found


def sample(folder: Path, shape: str) -> Figures:
    """Choose tokens of all rows, as published checkpoints ask for it."""
    found, vocabulary = Figures(), SHAPES[shape][0]["vocab_size"]
    grid = torch.zeros(0, 3, dtype=torch.long)
    for n_rows, options in itertools.product(_ROWS, ({"repetition_penalty": 1.0}, _PENALTY, _SAMPLED)):
        resolved: ResolvedConfig = make_spec(config(folder, **options)).resolved
        sampler, logits = Sampler(resolved), torch.randn(n_rows, vocabulary, device=DEVICE)
        rows = [
            Sequence(Request(row, (), "", None, row, 64), list(range(20, 420)), grid, image_id=1, merge=2)
            for row in range(n_rows)
        ]
        times = seconds_of(lambda: sampler.sample(logits.clone(), rows), n=5)  # noqa: B023
        found[f"{n_rows} rows, {options}"] = in_ms(times)
    return found


def vision(folder: Path, _: str) -> Figures:
    """Cut and encode images of several sizes."""
    with loaded(folder) as backend:
        runner, found = backend.model_runner, Figures()
        for height, width in _SIZES:
            pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
            image = LoadedImage(pixels, "d", (height, width))
            grid = torch.tensor([[1, height // 14, width // 14]])
            cut = lambda image=image: backend.tokenization.processor.patchify(image, runner.device)  # noqa: E731
            patches = cut()
            reset_peak()
            encode = lambda patches=patches, grid=grid: runner.encode_images(patches, grid)  # noqa: E731
            found[f"{height}x{width}"] = {
                "cut": in_ms(seconds_of(cut, n=3)),
                "encode": in_ms(seconds_of(encode, n=3)),
                "peak_GiB": peak_gib(),
            }
    return found


def prompt(folder: Path, _: str) -> Figures:
    """Prefill prompts, short and long, alone and together."""
    with loaded(folder) as backend:
        found = Figures()
        for n_rows, length in _PROMPTS:
            reset_peak()
            times = seconds_of(lambda: fill(backend.model_runner, n_rows, length), n=3)  # noqa: B023
            found[f"{n_rows} x {length} tokens"] = {**in_ms(times), "peak_GiB": peak_gib()}
    return found


def run(folder: Path, _: str) -> Figures:
    """Caption images of a megapixel, 128 tokens each, at several batch sizes and with none named."""
    tries: list[tuple[int, Figures]] = [(16, {"batch_size": 4}), (96, {"batch_size": 32}), (256, {})]
    compiled = {"batch_size": 32, "torch_compile": True}
    tries = [*tries, (256, {"batch_size": 128}), (96, compiled)] if CUDA else [(4, {"batch_size": 2}), (4, {})]
    found = Figures()
    for n, options in tries:
        plain = {"model_name": str(folder), "dtype": "bfloat16", "use_flash_attention_2": False, "progress": False}
        squares(2, 99).vl.run(**plain, **options, max_caption_length=2)
        reset_peak()
        cells = squares(n, n)
        started = time.perf_counter()
        with Busy() as busy:
            done = cells.vl.run(**plain, **options, max_caption_length=_N_TOKENS)
        seconds = time.perf_counter() - started
        found[f"{n} images, {options}"] = {
            "images_per_s": round(n / seconds, 2),
            "tokens_per_s": round(float(done["new_tokens"].sum()) / seconds),
            "gpu_busy_percent": busy.share,
            "peak_GiB": peak_gib(),
            "notes": done.attrs["effective"]["notes"],
        }
    qwenvl_kit.unload()
    return found


def peers(folder: Path, _: str) -> Figures:
    """Answer with transformers' generate in padded batches: the same images, prompt and tokens."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16, device_map=DEVICE).eval()
    processor, found = AutoProcessor.from_pretrained(folder), Figures()
    processor.tokenizer.padding_side = "left"
    content = [{"type": "image"}, {"type": "text", "text": DEFAULT_PROMPT}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    for n_rows in (4, 32) if CUDA else (2,):
        images = [Image.fromarray(each) for each in squares(n_rows, 5)]
        for n_tokens in (4, _N_TOKENS):  # the first one warms up
            started = time.perf_counter()
            inputs = processor(text=[text] * n_rows, images=images, padding=True, return_tensors="pt").to(DEVICE)
            with sdp(cudnn=False), torch.inference_mode():
                model.generate(**inputs, max_new_tokens=n_tokens, min_new_tokens=n_tokens, do_sample=False, **_PENALTY)
            wait()
        found[f"generate, {n_rows} rows"] = {"images_per_s": round(n_rows / (time.perf_counter() - started), 2)}
    return found


PARTS: dict[str, Callable[[Path, str], Figures]] = {
    "floor": floor,
    "step": step,
    "compiled": lambda folder, shape: step(folder, shape, torch_compile=True),
    "sample": sample,
    "vision": vision,
    "prompt": prompt,
    "run": run,
    "peers": peers,
}


def config(folder: Path, **options: Any) -> Config:
    return Config(model_name=str(folder), dtype="bfloat16", use_flash_attention_2=False, **options)


@contextlib.contextmanager
def loaded(folder: Path, **options: Any) -> Iterator[Any]:
    backend = make_spec(config(folder, **options)).load()
    try:
        with sdp(cudnn=False):  # as a run does
            yield backend
    finally:
        backend.close()


def squares(n: int, seed: int) -> pd.Series:
    """Return images of coloured squares."""
    draw = np.random.default_rng(seed)
    cell = np.ones((_SIDE // 8, _SIDE // 8, 1), np.uint8)
    return pd.Series([np.kron(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8), cell) for _ in range(n)], dtype=object)


def measure(shape: str, parts: list[str], budget_s: float, out: Path | None) -> Figures:
    """Return the figures of each part that the budget allows to begin; a part that fails says why."""
    started = time.perf_counter()
    found = {
        "shape": shape,
        "device": torch.cuda.get_device_name() if CUDA else "cpu",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cudnn": torch.backends.cudnn.version(),
    }
    with tempfile.TemporaryDirectory(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None) as shelf:
        folder = make_checkpoint(Path(shelf) / shape, shape, device=DEVICE, max_pixels=12_845_056)
        for part in parts:
            began = time.perf_counter()
            if began - started > budget_s:
                found[part] = "skipped: the budget is spent"
                continue
            try:
                found[part] = PARTS[part](folder, shape)
            except Exception as error:  # noqa: BLE001  # a part's fault must not cost the figures of the others
                found[part] = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
                qwenvl_kit.unload()
            print(f"{part} ({time.perf_counter() - began:.0f} s): {json.dumps(found[part])}", flush=True)
            if out is not None:
                out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--budget", type=float, default=200, metavar="SECONDS", help="begin no part after this time")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if DEVICE == "cuda" and not torch.cuda.is_available():
        print("Skipped: no CUDA device.")
        return 0
    found = measure(asked.shape, asked.parts.split(","), asked.budget, asked.out)
    return int(any("failed" in part for part in found.values() if isinstance(part, dict)))


if __name__ == "__main__":
    raise SystemExit(main())
