"""Run a workload on all contenders in turn, several times; print ratios with spread and write them as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import arithmetic
import torch
from contenders import MODEL, Card, Ours, Pipeline, Rows, make_images, make_model
from transformers import AutoConfig

from qwenvl_kit.executors.specs import make_spec

if TYPE_CHECKING:
    from torch import Tensor

    from qwenvl_kit.inference.model_runner import PrefillChunk

RESULTS = Path(__file__).parent / "results"
PEER_BATCHES = (4, 8, 16)


@dataclass(frozen=True)
class Workload:
    """A workload and the target ratio to the best peer of each backend."""

    name: str
    title: str
    rows: Rows
    wanted: dict[str, float]
    share: float = 1.0


def main(make: Callable[[float], Workload], share: float) -> int:
    """Measure, print, keep; the exit status is 1 where the wanted ratio is missed or answers differ.

    `share` of the workload's images are enough for a run of some minutes on two cores.
    """
    asked = _arguments(share)
    torch.set_num_threads(asked.threads)
    workload = make(asked.share)
    with tempfile.TemporaryDirectory() as folder:
        model = asked.model or make_model(Path(folder) / "model")
        ours = Ours(asked.backend, asked.export or model)
        quantization = make_spec(ours.config).resolved.quantization
        if quantization is not None:  # captions with rounded weights, whose answers may differ
            title = f"{workload.title}, {quantization} weights"
            workload = replace(workload, name=f"captions-{quantization}", title=title, wanted={"onnx": 2.0})
        found = _compete(workload, ours, Card(model), asked)
    wanted = workload.wanted[asked.backend]
    found |= {"wanted": wanted, "reached": found["ratio_to_best_peer"]["median"] >= wanted}
    _print(workload, found)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{workload.name}-{asked.backend}.json"
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if found["reached"] and (quantization is not None or not found["differing_answers"]) else 1


def _arguments(share: float) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", choices=("torch", "onnx"), default="torch")
    parser.add_argument("--export", type=Path, help="folder of the ONNX export of --model")
    parser.add_argument("--model", type=Path, help="folder that `contenders.py DIR` wrote; made anew without it")
    parser.add_argument("--batch-size", type=int, default=16, help="ours")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--share", type=float, default=share, help="of the workload's images [%(default)s]")
    return parser.parse_args()


def _compete(workload: Workload, ours: Ours, card: Card, asked: argparse.Namespace) -> dict[str, Any]:
    rows = workload.rows
    best, trials = _best_batch(card, rows)
    contenders: dict[str, Callable[[], list[str]]] = {
        f"qwenvl_kit, batch {asked.batch_size}": lambda: ours.answer(rows, asked.batch_size),
        f"model card's loop, batch {best}": lambda: card.answer(rows, best),
    }
    if asked.batch_size != best:
        contenders[f"model card's loop, batch {asked.batch_size}"] = lambda: card.answer(rows, asked.batch_size)
    if len(set(rows.n_most)) == 1:
        piped = Pipeline(card)
        contenders[f"transformers pipeline, batch {best}"] = lambda: piped.answer(rows, best)
    ours.answer(rows[:2], 2)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}  # tells work from waiting for other programs
    probes: list[dict[str, float]] = []
    answers: dict[str, list[str]] = {}
    for turn in range(asked.turns):
        order = list(contenders) if turn % 2 == 0 else list(reversed(contenders))
        for name in order:
            probes.append(limits(quick=True))
            _forget(ours)
            started, worked = time.perf_counter(), time.process_time()
            answers[name] = contenders[name]()
            seconds[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - worked)
    mine, *peers = contenders
    differing = {peer: sum(a != b for a, b in zip(answers[mine], answers[peer], strict=True)) for peer in peers}
    ratios = {peer: spread([p / m for p, m in zip(seconds[peer], seconds[mine], strict=True)]) for peer in peers}
    return {
        "workload": workload.title,
        "share_of_the_pictures": workload.share,
        "model": MODEL,
        "machine": machine(),
        "seconds": {name: spread(some) for name, some in seconds.items()},
        "cpu_seconds": {name: spread(some) for name, some in cpu.items()},
        "peer_trials_s": trials,
        "ratios": ratios,
        "ratio_to_best_peer": _to_best(seconds),
        "ratio_of_cpu_seconds_to_best_peer": _to_best(cpu),
        "differing_answers": max(differing.values()),
        "differing": differing,
        "new_tokens_of_rows": workload.rows.n_most if len(set(rows.n_most)) > 1 else rows.n_most[0],
        "limits": phases(ours, rows),
        "probe_gflops_before_each_run": [round(probe["gflops"]) for probe in probes],
    }


def _to_best(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return, for each turn, the time of the fastest peer over ours (the first)."""
    mine, *peers = seconds.values()
    return spread([min(others) / own for own, *others in zip(mine, *peers, strict=True)])


def _best_batch(card: Card, rows: Rows) -> tuple[int, dict[str, float]]:
    card.answer(rows[:2], 2)
    trials = {}
    for batch_size in dict.fromkeys(min(size, len(rows)) for size in PEER_BATCHES):
        started = time.perf_counter()
        card.answer(rows, batch_size)
        trials[batch_size] = time.perf_counter() - started
    return min(trials, key=lambda size: trials[size]), {str(size): round(took, 2) for size, took in trials.items()}


def _forget(ours: Ours) -> None:
    """Clear the encoder cache, so that no turn profits from an earlier one."""
    ours.backend.encoder_cache.clear()


def limits(*, quick: bool = False) -> dict[str, float]:
    """Measure the limits of the machine: float32 products and memory bandwidth."""
    side, n_times = (1024, 3) if quick else (2048, 8)
    a, b = torch.randn(side, side), torch.randn(side, side)
    products = [_seconds(lambda: a @ b) for _ in range(n_times)]
    weights = torch.randn(2**22 if quick else 2**26)
    reads = [_seconds(weights.sum) for _ in range(n_times)]
    return {"gflops": 2 * side**3 / min(products) / 1e9, "gbytes_per_s": weights.nbytes / min(reads) / 1e9}


def phases(ours: Ours, rows: Rows) -> dict[str, Any]:
    """Compare image encoding, prefill and decode at batch 4 with the limits of the machine."""
    _forget(ours)
    config = AutoConfig.from_pretrained(ours.config.model_name, local_files_only=True)
    text, vision = config.text_config, config.vision_config
    flops, spent = 0.0, 0.0  # of looking and reading
    steps: list[float] = []
    model_runner = ours.backend.model_runner
    plain = {name: getattr(model_runner, name) for name in ("encode_images", "prefill", "decode")}

    def encode_images(patches: Tensor, grid: Tensor) -> Any:
        nonlocal flops, spent
        took, seen = _timed(lambda: plain["encode_images"](patches, grid))
        spent += took
        flops += sum(arithmetic.looking(vision, tuple(one)) for one in grid.tolist())
        return seen

    def prefill(chunks: Sequence[PrefillChunk]) -> Any:
        nonlocal flops, spent
        took, logits = _timed(lambda: plain["prefill"](chunks))
        spent += took
        flops += arithmetic.reading(text, [(len(one.ids), one.cached_len) for one in chunks])
        return logits

    def decode(ids: Tensor, *others: Tensor) -> Any:
        took, logits = _timed(lambda: plain["decode"](ids, *others))
        if len(ids) == 4:
            steps.append(took)
        return logits

    model_runner.encode_images, model_runner.prefill, model_runner.decode = encode_images, prefill, decode
    ours.answer(Rows(make_images(4), rows.prompts[:1] * 4, [24] * 4), 4)
    for name in plain:
        delattr(model_runner, name)
    machine_limits = limits()
    weights = text.num_hidden_layers * (arithmetic.stored(text) + arithmetic.others(text))
    weights_once = (weights + text.hidden_size * text.vocab_size) * 4 / machine_limits["gbytes_per_s"] / 1e9
    step_s = statistics.median(steps) if steps else float("nan")
    return {
        "gemm_peak_gflops": round(machine_limits["gflops"], 1),
        "memory_gbytes_per_s": round(machine_limits["gbytes_per_s"], 1),
        "prompt_phase_share_of_gemm_peak": round(flops / spent / 1e9 / machine_limits["gflops"], 3),
        "step_at_batch_4_ms": round(step_s * 1e3, 2),
        "reading_the_weights_once_ms": round(weights_once * 1e3, 2),
        "step_over_reading_the_weights_once": round(step_s / weights_once, 2),
    }


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    packages = ("torch", "transformers", "numpy", "onnxruntime")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "measured": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {name: round(of(values), 3) for name, of in (("median", statistics.median), ("min", min), ("max", max))}


def _print(workload: Workload, found: dict[str, Any]) -> None:
    print(f"{workload.name}: {workload.title}; {workload.share:.0%} of it")
    for name, some in found["seconds"].items():
        print(f"  {name}: {_shown(some)} s")
    for name, some in found["ratios"].items():
        print(f"  × {_shown(some)} of {name}; {found['differing'][name]} answers differ")
    verdict = "reached" if found["reached"] else "missed"
    print(f"  best peer: × {_shown(found['ratio_to_best_peer'])}, wanted × {found['wanted']}: {verdict}")
    print(f"  in CPU seconds × {_shown(found['ratio_of_cpu_seconds_to_best_peer'])}")
    print("  " + ", ".join(f"{name} {value}" for name, value in found["limits"].items()))
    print(f"  GFLOP/s before each run: {found['probe_gflops_before_each_run']} (other work on the machine shows here)")


def _shown(some: dict[str, float]) -> str:
    return f"{some['median']:.2f} ({some['min']:.2f} to {some['max']:.2f})"


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


def _version(name: str) -> str:
    try:
        return version(name)
    except Exception:  # noqa: BLE001  # not installed
        return "not installed"
