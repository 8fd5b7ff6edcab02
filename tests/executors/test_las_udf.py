"""The operator through Daft: the script that its users have, and what must never happen on the way."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from helpers.fake_servers import SECRET_KEY, serve_s3, serve_tos

from qwenvl_kit import ConfigError, ModelNotFound
from qwenvl_kit.daft import QwenVLImageUnderstanding, las_udf

SCRIPT = Path(__file__).parent / "operator_script.py"
ECHO = {"backend": "echo", "image_src_type": "auto"}


def job(urls: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-X", "faulthandler", str(SCRIPT), *urls],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.mark.parametrize("runner", ["native", pytest.param("ray", marks=pytest.mark.slow)])
def test_the_users_script_prints_right_captions(gallery: Any, runner: str) -> None:
    """Of pictures behind http, in S3 and in TOS, the same five in each."""
    files = {f"{at}.png": data for at, data in enumerate(gallery.files)}
    urls = [*gallery.urls, *(f"s3://pictures/{name}" for name in files), *(f"tos://pictures/{name}" for name in files)]
    with serve_s3("pictures", files) as s3, serve_tos(files) as tos:
        done = job([*urls, gallery.urls[0]], DAFT_RUNNER=runner, **s3.environment, **tos.environment)

    # Daft's own threads may still touch Python when it ends, and crash then (seen once in a hundred runs).
    assert done.returncode in (0, -signal.SIGSEGV), done.stderr[-3000:]
    pairs = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith('[["')))
    said = dict(pairs)
    local = pd.Series(gallery.urls).vl.caption(
        model_name="demo", dtype="float32", use_flash_attention_2=False, progress=False
    )
    assert sorted(url for url, _ in pairs) == sorted([*urls, gallery.urls[0]])
    assert [said[url] for url in urls] == local.tolist() * 3
    assert sum(said[url] == true for url, true in zip(urls, gallery.captions, strict=False)) >= 4
    for secret in (SECRET_KEY, "Signature="):
        assert secret not in done.stdout + done.stderr


def test_a_model_that_is_missing_fails_the_job_loudly(gallery: Any) -> None:
    done = job(list(gallery.urls[:1]), MODEL_NAME="no/such-model", HF_HUB_OFFLINE="1")

    assert done.returncode != 0
    assert "no/such-model" in done.stderr


def evaluate(cells: list[Any], prompts: list[Any] | None = None, **settings: Any) -> list[Any]:
    import daft
    from daft import col

    frame = daft.from_pydict({"image": daft.Series.from_pylist(cells), "prompt": prompts or ["What?"] * len(cells)})
    understand = las_udf(QwenVLImageUnderstanding, {**ECHO, **settings.pop("construct_args", {})}, **settings)
    answers: list[Any] = frame.with_column("said", understand(col("image"), col("prompt"))).to_pydict()["said"]
    return answers


@pytest.mark.filterwarnings("ignore")
def test_one_bad_picture_never_nulls_its_batch(gallery: Any) -> None:
    cells = [gallery.urls[0], None, "missing.png", gallery.urls[1]]

    texts = evaluate(cells, batch_size=4)
    structs = evaluate(cells, batch_size=4, returns="struct")

    assert [text is None for text in texts] == [False, True, True, False]
    assert [struct["status"] for struct in structs] == ["ok", "null_image", "error", "ok"]
    assert "missing.png" in structs[2]["error"]
    assert structs[0]["finish_reason"] == "stop"


@pytest.mark.filterwarnings("ignore")
def test_rows_keep_their_order_over_many_batches(gallery: Any) -> None:
    prompts = [f"row {number}" for number in range(300)]

    said = evaluate([gallery.urls[number % 5] for number in range(300)], prompts, batch_size=7)

    assert [text.split(" [")[0] for text in said] == prompts


@pytest.mark.filterwarnings("ignore")
def test_a_column_of_mixed_types_and_a_10_mb_text_are_understood_cell_by_cell(gallery: Any) -> None:
    long = base64.b64encode(gallery.files[0] + bytes(8_000_000)).decode()
    pixels = np.zeros((56, 56, 3), np.uint8)
    cells = [
        gallery.urls[0],
        gallery.files[1],
        long,
        12,
        {"bytes": gallery.files[2], "path": None},
        None,
        pixels,
        "A" * 10**7,
    ]

    structs = evaluate(cells, batch_size=3, returns="struct")

    assert [struct["status"] for struct in structs] == ["ok", "ok", "ok", "error", "ok", "null_image", "ok", "error"]
    assert max(len(struct["error"] or "") for struct in structs) < 300, "no message repeats the cell"


@pytest.mark.filterwarnings("ignore")
def test_a_url_with_credentials_is_masked_in_every_message() -> None:
    import daft
    from daft import col

    urls = [
        "http://me:hunter2@127.0.0.1:9/a.png?X-Amz-Signature=deadbeef",
        "s3://me:hunter2@bucket/a.png",
        "x://a:hunter2@b",
    ]
    frame = daft.from_pydict({"image": urls})
    understand = las_udf(QwenVLImageUnderstanding, {"backend": "echo", "timeout_s": 5}, returns="struct", concurrency=1)

    said = frame.with_column("said", understand(col("image"))).to_pydict()["said"]

    assert [struct["status"] for struct in said] == ["error"] * 3
    assert not [struct for struct in said if "hunter2" in struct["error"] or "deadbeef" in struct["error"]]
    assert "127.0.0.1:9" in said[0]["error"]


@pytest.mark.filterwarnings("ignore")
def test_ten_thousand_rows_keep_their_order_and_are_counted_once() -> None:
    prompts = [f"row {number}" for number in range(10_000)]

    said = evaluate([np.full((56, 56, 3), number % 256, np.uint8) for number in range(10_000)], prompts, batch_size=64)

    assert [text.split(" [")[0] for text in said] == prompts


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cells", [[], [None, None]], ids=["no-rows", "all-null"])
def test_empty_and_all_null_columns_come_back_as_they_are(cells: list[None]) -> None:
    assert evaluate(cells) == cells


def test_gpus_that_are_not_there_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)

    with pytest.raises(ConfigError, match="num_gpus=0 and rank=None"):
        las_udf(QwenVLImageUnderstanding, num_gpus=1)


def test_returns_must_be_one_of_its_values() -> None:
    with pytest.raises(ConfigError, match="'struct'"):
        las_udf(QwenVLImageUnderstanding, returns="json")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::qwenvl_kit.RowErrorWarning")
def test_the_operator_is_a_plain_callable_for_lists_series_and_arrow(gallery: Any) -> None:
    import pyarrow

    understand = QwenVLImageUnderstanding(backend="echo", prompt="What?")
    urls = [gallery.urls[0], None, "missing.png"]

    said = understand(urls)

    assert said[0] is not None
    assert said[1:] == [None, None]
    assert understand(pd.Series(urls)) == understand(pyarrow.array(urls)) == said
    own = understand(urls, ["Own?", None, None])[0]
    assert own is not None
    assert own.startswith("Own?")
    assert understand([]) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::qwenvl_kit.RowErrorWarning")
def test_the_operator_gives_labels_and_json_here_and_in_a_job(gallery: Any) -> None:
    import daft
    from daft import col

    urls = [*gallery.urls[:2], "missing.png"]
    demo: dict[str, Any] = {"model_name": "demo", "dtype": "float32"}
    asked = {**demo, "labels": ["Yes.", "No."], "prompt": "Is there a circle?"}
    labels = QwenVLImageUnderstanding(**asked)(urls)
    counts = QwenVLImageUnderstanding(schema={"count": Literal[1, 2, 3]}, **demo)(urls)
    cut = QwenVLImageUnderstanding(regex="[0-9]{40}", max_caption_length=3, **demo)
    frame = daft.from_pydict({"image": urls}).with_column(
        "label", las_udf(QwenVLImageUnderstanding, asked)(col("image"))
    )

    chosen = pd.Series(urls[:2]).vl.classify(["Yes.", "No."], prompt=asked["prompt"], progress=False, **demo)
    assert labels == [*chosen["label"], None]
    assert frame.to_pydict()["label"] == labels
    assert [json.loads(one)["count"] in (1, 2, 3) for one in counts[:2] if one] == [True, True]
    assert counts[2] is None
    assert cut(urls[:1], ["How many?"]) == [None]
    assert cut.results(urls[:1])[0].text, "the text of a cut answer is kept"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": ["a", "b"], "regex": "a"}, "labels and regex exclude each other"),
        ({"labels": ["a"], "model_name": "demo"}, "Pass at least two"),
        ({"labels": ["a", "b"], "backend": "echo"}, "backend='echo' has no model to score labels with"),
        ({"choices": [], "model_name": "demo"}, "choices is empty"),
        ({"schema": {}, "backend": "echo"}, "no fields|cannot be constrained|at least one"),
    ],
)
def test_a_form_that_the_operator_cannot_give_is_refused_at_once(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QwenVLImageUnderstanding(**given)


def test_the_operator_fails_at_once_where_it_cannot_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(ModelNotFound, match="no/such"):
        QwenVLImageUnderstanding(model_name="no/such", model_path=str(tmp_path))
    with pytest.raises(ConfigError, match="2 entries for 1 rows"):
        QwenVLImageUnderstanding(backend="echo")([None], ["a", "b"])


@pytest.mark.filterwarnings("ignore::qwenvl_kit.RowErrorWarning")
def test_bytes_under_the_operators_default_type_name_the_right_one() -> None:
    (result,) = QwenVLImageUnderstanding(backend="echo").results([b"\x89PNG"])

    assert "image_src_type='image_binary'" in str(result.error)
