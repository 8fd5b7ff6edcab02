"""A day of a small Ray cluster: the same runs here and there, workers killed, refusals; writes what it saw as JSON.

Called with the file to write to and the addresses of pictures. All in one process, since a cluster takes seconds to
start. Not to the output, where Ray writes too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import daft
import numpy as np
import pandas as pd
import psutil
import ray
from daft import col

import qwenvl_kit
from qwenvl_kit.daft import QwenVLImageUnderstanding, las_udf

ON_RAY: dict[str, Any] = {"engine": "ray", "progress": False}
URLS = sys.argv[2:]


def gray(level: int) -> np.ndarray:
    """A picture of one gray level."""
    return np.full((56, 56, 3), level, dtype=np.uint8)


def numbered(n: int) -> tuple[pd.Series, list[str]]:
    """Rows whose prompts are their numbers, which the echo says back."""
    return pd.Series([gray(row % 256) for row in range(n)]), [str(row) for row in range(n)]


def n_right(texts: Any) -> int:
    """Rows that hold the answer to their own prompt."""
    return sum(str(text).split(" ")[0] == str(row) for row, text in enumerate(texts))


def odd_cells() -> dict[str, Any]:
    """A column of everything, here and there."""
    long = "A" * 10_000_000
    cells = [gray(1), *URLS, None, float("nan"), "missing.png", b"\x89PNG", 12, [gray(1), gray(2)], "", long, gray(1)]
    cells.append("http://me:hunter2@127.0.0.1:9/a.png")
    series = pd.Series(cells, index=[f"r{row}" for row in range(len(cells))])
    here = series.vl.run(backend="echo", progress=False).drop(columns=["seconds", "cached"])
    there = series.vl.run(backend="echo", concurrency=2, **ON_RAY)
    return {
        "same": here.equals(there.drop(columns=["seconds", "cached"])),
        "attrs": list(there.attrs) == list(here.attrs) and there.attrs["effective"] == here.attrs["effective"],
        "statuses": there["status"].tolist(),
        "secret": "hunter2" in "".join(there["error"].dropna()),
    }


def demo() -> dict[str, Any]:
    """What the demo model says in one process, on two workers, and through the operator."""
    options: dict[str, Any] = {"model_name": "demo", "dtype": "float32", "batch_size": 2}
    series = pd.Series([*URLS, None])
    here = series.vl.caption(progress=False, **options).astype(object).where(series.notna(), None).tolist()
    there = series.vl.caption(concurrency=2, **options, **ON_RAY).astype(object).where(series.notna(), None).tolist()
    understand = las_udf(QwenVLImageUnderstanding, options, num_gpus=0, batch_size=2, concurrency=1)
    frame = daft.from_pydict({"image": [*URLS, None]}).with_column("said", understand(col("image")))
    return {"here": here, "there": there, "operator": frame.to_pydict()["said"]}


def forms() -> dict[str, Any]:
    """Labels, a schema and a pattern, in one process, on a worker, and through the operator."""
    options: dict[str, Any] = {"model_name": "demo", "dtype": "float32", "batch_size": 2}
    series = pd.Series(URLS[:2])

    def told(**where: Any) -> list[Any]:
        chosen = series.vl.classify(["Yes.", "No."], prompt="Is there a circle?", **options, **where)
        found = series.vl.extract({"count": int}, max_caption_length=20, **options, **where)
        matched = series.vl.ask("How many?", regex="[0-9]{2}", **options, **where)
        return [chosen["label"].tolist(), found["raw"].tolist(), matched.tolist()]

    given = {**options, "labels": ["Yes.", "No."], "prompt": "Is there a circle?"}
    choose = las_udf(QwenVLImageUnderstanding, given, num_gpus=0, batch_size=2, concurrency=1)
    frame = daft.from_pydict({"image": URLS[:2]}).with_column("label", choose(col("image")))
    labels = dict(zip(*frame.to_pydict().values(), strict=True))
    return {"here": told(progress=False), "there": told(**ON_RAY), "operator": [labels[url] for url in URLS[:2]]}


def ten_thousand() -> dict[str, Any]:
    """Order and count of many rows."""
    cells, prompts = numbered(10_000)
    told: list[int] = []
    control = qwenvl_kit.Control(on_result=lambda result: told.append(result.row))
    texts = cells.vl.caption(backend="echo", prompts=prompts, concurrency=2, control=control, **ON_RAY)
    return {"right": n_right(texts), "told": len(told), "told_once": len(set(told))}


def killed(kill: Callable[[], None]) -> dict[str, Any]:
    """A run in which `kill` is called once, when it is well under way."""
    cells, prompts = numbered(400)
    told: list[int] = []

    def watch(result: Any) -> None:
        told.append(result.row)
        if len(told) == 50:
            kill()

    control = qwenvl_kit.Control(on_result=watch)
    options: dict[str, Any] = {"backend": "echo", "model_name": "echo-20ms", "batch_size": 2, "concurrency": 2}
    run = cells.vl.run(prompts=prompts, control=control, **options, **ON_RAY)
    return {"right": n_right(run["text"]), "told": len(told), "told_once": len(set(told))}


def operator_killed() -> dict[str, Any]:
    """The operator's own job, of which a worker is killed."""
    _, prompts = numbered(400)
    options = {"backend": "echo", "model_name": "echo-20ms", "batch_size": 2, "image_src_type": "auto"}
    understand = las_udf(QwenVLImageUnderstanding, options, num_gpus=0, batch_size=8, concurrency=2)
    frame = daft.from_pydict({"image": [URLS[0]] * 400, "prompt": prompts}).with_column(
        "said", understand(col("image"), col("prompt"))
    )
    n_killed: list[int] = []

    def later() -> None:
        while not (pids := worker_pids()):
            time.sleep(0.05)
        time.sleep(1)
        os.kill(pids[0], signal.SIGKILL)
        n_killed.append(pids[0])

    killer = threading.Thread(target=later)
    killer.start()
    said = frame.to_pydict()
    killer.join()
    pairs = dict(zip(said["prompt"], said["said"], strict=True))
    return {"killed": len(n_killed), "rows": len(said["said"]), "right": n_right(pairs[prompt] for prompt in prompts)}


def worker_pids() -> list[int]:
    """Processes of Daft's workers."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "ray::UDFActor" in " ".join(process.info["cmdline"] or []):
            found.append(process.pid)
    return found


def kill_by_pid() -> None:
    """As when memory runs out."""
    os.kill(worker_pids()[0], signal.SIGKILL)


def kill_by_ray() -> None:
    """As Ray itself does it, with a restart allowed."""
    named = [one for one in ray.util.list_named_actors(all_namespaces=True) if one["name"].startswith("QwenVL")]
    ray.kill(ray.get_actor(named[0]["name"], namespace=named[0]["namespace"]), no_restart=False)


def refusals() -> dict[str, str]:
    """What is refused at once."""
    wishes: dict[str, dict[str, Any]] = {
        "gpus": {"num_gpus": 1},
        "workers": {"concurrency": 50},
        "rank": {"rank": 0},
        "native": {"engine": "daft"},
        "model": {"backend": "torch", "model_name": "no/such", "model_path": "/nowhere"},
    }
    said = {}
    for name, wish in wishes.items():
        try:
            pd.Series([gray(1)]).vl.caption(**{"backend": "echo" if name != "rank" else "torch", **ON_RAY, **wish})
        except (ValueError, FileNotFoundError) as error:
            said[name] = f"{type(error).__name__}: {error}"
    try:
        las_udf(QwenVLImageUnderstanding, {"rank": 1}, num_gpus=0)
    except ValueError as error:
        said["operator_rank"] = str(error)
    try:
        las_udf(QwenVLImageUnderstanding, {}, num_gpus=1)
    except ValueError as error:
        said["operator_gpus"] = str(error)
    return said


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    seen: dict[str, Any] = {}
    for name, work in {
        "odd_cells": odd_cells,
        "demo": demo,
        "forms": forms,
        "ten_thousand": ten_thousand,
        "killed_by_pid": lambda: killed(kill_by_pid),
        "killed_by_ray": lambda: killed(kill_by_ray),
        "operator_killed": operator_killed,
        "refusals": refusals,
    }.items():
        started = time.perf_counter()
        seen[name] = work()
        print(name, round(time.perf_counter() - started, 1), "s", file=sys.stderr, flush=True)
    Path(sys.argv[1]).write_text(json.dumps(seen), encoding="utf-8")
