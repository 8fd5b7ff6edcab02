"""Thousands of random schemas, each answered under its constraint by random weights and by the embedded model.

Run it by hand: ``python tests/reliability/constrained_schemas.py --schemas 10000``. Each answer must be valid under its
schema, or an error "truncated". It prints one line of JSON, and gives exit status 1 for any other answer.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import jsonschema
import torch
from helpers.checkpoints import make_published
from helpers.schemas import SCHEMAS
from hypothesis import HealthCheck, Phase, given, settings

from qwenvl_kit import Config
from qwenvl_kit.demo import draw, model_dir, sample_scenes
from qwenvl_kit.executors import execute
from qwenvl_kit.tasks.extract import Extraction

_ROWS = 250  # of one run
_PROMPTS = (
    "Describe the image.",
    "What is in the image? 描述图片。",
    "List everything as JSON, with much white space.",
)


def main() -> int:
    """Run all, print what came out; return 1 for an answer that is neither valid nor cut."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemas", type=int, default=10_000)
    parser.add_argument("--max-tokens", type=int, default=48)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    started = time.perf_counter()
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        models = [str(make_published(Path(folder) / "random", vocab_size=1503, head_scale=2.0)), str(model_dir())]
        while outcomes.total() < asked.schemas:
            some = random_schemas(min(_ROWS, asked.schemas - outcomes.total()))
            outcomes += answer(some, random.choice(models), asked.max_tokens)
            print(outcomes.total(), dict(outcomes), file=sys.stderr, flush=True)
    bad = sum(n for name, n in outcomes.items() if name not in ("valid", "truncated"))
    seconds = round(time.perf_counter() - started)
    print(json.dumps({"schemas": outcomes.total(), **outcomes, "seconds": seconds}, ensure_ascii=False))
    return 1 if bad else 0


def random_schemas(n: int) -> list[dict[str, Any]]:
    """Return at most `n` different schemas."""
    found: dict[str, dict[str, Any]] = {}

    @settings(max_examples=n, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck))
    @given(schema=SCHEMAS)
    def collect(schema: dict[str, Any]) -> None:
        found.setdefault(json.dumps(schema), schema)

    collect()
    return list(found.values())


def answer(schemas: list[dict[str, Any]], model: str, max_tokens: int) -> Counter[str]:
    """Answer each schema, for one of a few images and prompts, and count what came back."""
    draws = random.Random(json.dumps(schemas[0]))
    images = [draw(scene) for scene in sample_scenes(8, seed=7)]
    sampled: dict[str, Any] = {"do_sample": True, "temperature": 2.0, "seed": 1} if draws.random() < 0.5 else {}
    config = Config(
        model_name=model, dtype="float32", progress=False, max_caption_length=max_tokens, batch_size=16, **sampled
    )
    extractions = [Extraction.of(_renamed(one), config) for one in schemas]
    prompts = [one.prompts([draws.choice(_PROMPTS)], is_own=True)[0] for one in extractions]
    run = execute([draws.choice(images) for _ in schemas], prompts, config)
    if run.failure is not None:
        raise run.failure
    results = [one.checked(result) for one, result in zip(extractions, run.results, strict=True)]
    return Counter(map(_outcome, results, schemas))


def _renamed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema within another, since names of fields may be those of columns."""
    return {"type": "object", "properties": {"answer": schema}}


def _outcome(result: Any, schema: dict[str, Any]) -> str:
    if result.status == "error":
        return "truncated" if (result.error or "").startswith("truncated: ") else f"error: {result.error}"
    try:
        jsonschema.validate(json.loads(result.text), _renamed(schema))
    except (ValueError, jsonschema.ValidationError) as error:
        return f"invalid: {str(error)[:80]} in {result.text!r} for {json.dumps(schema)}"
    return "valid"


if __name__ == "__main__":
    sys.exit(main())
