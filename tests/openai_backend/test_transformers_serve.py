"""``transformers serve`` on this machine, with the exported embedded model in float32: a server of another make."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import qwenvl_kit
from qwenvl_kit.demo import LARGE_WORLD, draw, sample_scenes
from qwenvl_kit.demo.exported import export_checkpoint

pytestmark = pytest.mark.slow

_START_S = 300
_IS_REQUIRED = os.environ.get("QWENVL_KIT_SERVE") == "required"
_LACKING = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Serve in a process of its own, which ends with the tests."""
    if _LACKING and not _IS_REQUIRED:
        pytest.skip(f"transformers serve needs {', '.join(_LACKING)}")
    folder = export_checkpoint(tmp_path_factory.mktemp("served"))[0]
    port = _free_port()
    server = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--host", "127.0.0.1"]
    log = folder / "server.log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [*server, "--port", str(port), "--device", "cpu", "--dtype", "float32"], stdout=written, stderr=written
        )
        try:
            _wait(f"http://127.0.0.1:{port}/v1/models", process, log)
            yield f"http://127.0.0.1:{port}/v1", folder
        finally:
            process.terminate()
            process.wait(30)


def test_it_conforms(served: tuple[str, Path]) -> None:
    url, folder = served

    found = qwenvl_kit.conform(backend="openai", base_url=url, model_name=str(folder))

    assert found.attrs["passed"], found[found["verdict"] == "fail"].to_dict("records")


@pytest.mark.parametrize("rows_in_flight", [1, 4, 16])
def test_texts_are_those_of_torch_with_any_number_of_requests_in_flight(
    served: tuple[str, Path], rows_in_flight: int
) -> None:
    url, folder = served
    scenes = sample_scenes(16, seed=rows_in_flight, world=LARGE_WORLD)
    frame = pd.DataFrame({"image": [draw(scene) for scene in scenes]})
    prompts = np.resize(["Describe this image in detail.", "请给出这张图片的详细描述。"], 16).tolist()
    shared = {"model_name": str(folder), "progress": False, "max_caption_length": 48}

    answers = frame.vl.ask("image", prompts, backend="openai", base_url=url, rows_in_flight=rows_in_flight, **shared)

    right = frame.vl.ask("image", prompts, backend="torch", dtype="float32", **shared)
    assert answers.tolist() == right.tolist()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(10 * _START_S):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"no answer within {_START_S} s: {log.read_text()[-2000:]}")
