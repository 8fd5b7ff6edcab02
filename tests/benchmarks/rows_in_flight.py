"""Measure captions at several numbers of rows in flight, in turn: ``python tests/benchmarks/rows_in_flight.py``.

Distinct images of 448 pixels a side, 64 tokens each, by the model of all benchmarks. CPU seconds of one thread are what
other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from contenders import make_images, make_model
from contest import RESULTS, machine
from PIL import Image

from qwenvl_kit import Config
from qwenvl_kit.executors.local import run_spec
from qwenvl_kit.executors.specs import make_spec


def main() -> int:
    """Measure, print and keep; return 1 where answers differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--model", type=Path, help="folder that `contenders.py DIR` wrote; made anew without it")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = _measure(asked, asked.model or make_model(Path(folder) / "model"))
    print(json.dumps(found, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"rows-in-flight-{asked.dtype}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if found["answers_are_equal"] else 1


def _measure(asked: argparse.Namespace, folder: Path) -> dict[str, object]:
    config = Config(
        model_name=str(folder),
        dtype=asked.dtype,
        use_flash_attention_2=False,
        progress=False,
        max_caption_length=64,
        threads=1,
    )
    backend: Any = make_spec(config).load()
    images = make_images(asked.images)
    _run(images[:2], config, backend)  # the first passes are slow
    texts: set[tuple[str | None, ...]] = set()
    seconds: dict[int, list[float]] = {rows: [] for rows in asked.rows}
    for turn in range(asked.turns):
        for rows in asked.rows if turn % 2 == 0 else reversed(asked.rows):
            planned = config.replace(rows_in_flight=rows, batch_size=4)
            backend.encoder_cache.clear()
            started = time.process_time()
            texts.add(_run(images, planned, backend))
            seconds[rows].append(round(time.process_time() - started, 2))
            print(f"turn {turn}, {rows} rows: {seconds[rows][-1]} CPU seconds", flush=True)
    return {
        "workload": f"captions of {asked.images} distinct images, 448 px, 64 tokens, {asked.dtype}, one thread",
        "machine": machine(),
        "cpu_seconds": seconds,
        "median": {rows: statistics.median(some) for rows, some in seconds.items()},
        "answers_are_equal": len(texts) == 1,
    }


def _run(images: list[Image.Image], config: Config, backend: Any) -> tuple[str | None, ...]:
    prompts = ["Describe this picture."] * len(images)
    done = run_spec(images, prompts, config, make_spec(config), lambda _: nullcontext(backend))
    return tuple(result.text for result in done.results)


if __name__ == "__main__":
    raise SystemExit(main())
