"""Measure how long a model with 1 s per batch of 8 waits for 12-megapixel JPEGs."""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from contest import RESULTS, machine
from PIL import Image

from qwenvl_kit import Config
from qwenvl_kit.executors.local import run_spec
from qwenvl_kit.executors.specs import make_spec

WANTED = 0.95
BATCH, SECONDS_PER_BATCH = 8, 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=480, help="1000 takes a little over two minutes")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            backend="echo",
            batch_size=BATCH,
            resized_height=448,
            resized_width=448,
            image_decode="draft",
            progress=False,
        )
        spec = replace(make_spec(config), seconds_per_batch=SECONDS_PER_BATCH)  # type: ignore[type-var]
        cells = _write(Path(folder), asked.rows)
        started = time.perf_counter()
        done = run_spec(cells, ["What?"] * len(cells), config, spec, lambda _: nullcontext(spec.load()))
        seconds = time.perf_counter() - started
    assert all(result.status == "ok" for result in done.results)
    busy = sum(result.seconds for result in done.results) / seconds
    found = {
        "workload": f"{asked.rows} JPEGs of 12 megapixels to 448 px, decode='draft', 1 s a batch of 8",
        "shortened": "" if asked.rows >= 1000 else f"({asked.rows} of 1,000 rows, to keep the run short)",
        "machine": machine(),
        "seconds": round(seconds, 2),
        "least_seconds": asked.rows / BATCH * SECONDS_PER_BATCH,
        "busy": round(asked.rows / BATCH * SECONDS_PER_BATCH / seconds, 4),
        "in_batches_that_were_not_full_too": round(busy, 4),
        "wanted": WANTED,
    }
    print(json.dumps(found, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "feeding.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if found["busy"] >= WANTED else 1


def _write(folder: Path, n_rows: int) -> list[str]:
    """Files of one photograph-like image; bytes after the end of a JPEG make each another one."""
    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((4000, 3000))
    buffer = io.BytesIO()
    coarse.save(buffer, "JPEG", quality=85)
    paths = [folder / f"{row}.jpg" for row in range(n_rows)]
    for row, path in enumerate(paths):
        path.write_bytes(buffer.getvalue() + row.to_bytes(4))
    return [str(path) for path in paths]


if __name__ == "__main__":
    raise SystemExit(main())
