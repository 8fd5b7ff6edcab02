"""What a run would take: tokens as they will be counted, and no weights, no pixels on the way."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from qwenvl_kit import ConfigError
from qwenvl_kit.cli import main
from qwenvl_kit.images.headers import HeaderReader
from qwenvl_kit.images.resize import MAX_ASPECT
from qwenvl_kit.types import ImageSource

ECHO: dict[str, Any] = {"backend": "echo", "progress": False}
DEMO: dict[str, Any] = {"model_name": "demo", "dtype": "float32", "progress": False}


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint whose context holds any image."""
    from helpers.checkpoints import make_published

    return make_published(tmp_path_factory.mktemp("roomy"), context=200_000)


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return file.getvalue()


def test_each_row_has_its_sizes_or_its_own_error() -> None:
    cells = [png(640, 480), None, b"<html>" + bytes(200), [png(100, 200), png(56, 56)], "missing.png", png(2000, 5)]
    df = pd.DataFrame({"image": pd.Series(cells, index=list("abcdef"), dtype=object)})

    rows = df.vl.plan("image", **ECHO).rows

    assert rows.index.tolist() == list("abcdef")
    assert rows["status"].tolist() == ["ok", "null_image", "error", "ok", "error", "error"]
    assert rows.loc["a", ["width", "height", "resized_width", "resized_height"]].tolist() == [640, 480, 644, 476]
    assert rows.loc[["a", "d"], "visual_tokens"].tolist() == [644 * 476 // 784, (112 * 196 + 56 * 56) // 784]
    assert rows["stage"].dropna().tolist() == ["decode", "fetch", "resize"]
    assert "HTML page" in rows.loc["c", "error"]
    assert "missing.png" in rows.loc["e", "error"]
    assert "Aspect ratio" in rows.loc["f", "error"]


@pytest.mark.model
@pytest.mark.parametrize("seed", range(4))
def test_visual_tokens_equal_those_of_transformers_for_any_size(
    monkeypatch: pytest.MonkeyPatch, roomy: Path, seed: int
) -> None:
    from qwen_vl_utils.vision_process import smart_resize
    from transformers import AutoProcessor

    def size(self: HeaderReader, source: ImageSource) -> tuple[int, int]:
        width, height = source.value.removesuffix(".png").split("x")
        return int(height), int(width)

    monkeypatch.setattr(HeaderReader, "size", size)
    processor = AutoProcessor.from_pretrained(roomy, local_files_only=True).image_processor
    draw = random.Random(seed)
    for _ in range(25):
        least = draw.choice([784, 3136, 50_000, draw.randint(784, 300_000)])
        most = least * draw.choice([4, 16, 300])  # nearer limits make the model card resize twice
        sides = [(_side(draw), _side(draw)) for _ in range(120)]
        names = [f"{w}x{h}.png" for w, h in sides if max(w, h) <= MAX_ASPECT * min(w, h) and w * h <= 89_000_000][:100]
        options = {"min_pixels": least, "max_pixels": most}
        found = pd.Series(names).vl.plan(model_name=str(roomy), max_caption_length=1, progress=False, **options).rows

        for name, tokens in zip(names, found["visual_tokens"].fillna(-1), strict=True):
            width, height = map(int, name.removesuffix(".png").split("x"))
            limits = {"min_pixels": least, "max_pixels": most}
            resized = smart_resize(height, width, 28, least, most)  # as the model card does it, before its processor
            if max(resized) > MAX_ASPECT * min(resized):  # it gives up on needles
                continue
            expected = processor.get_number_of_image_patches(*resized, limits) // processor.merge_size**2
            assert tokens == expected, (name, options)


def _side(draw: random.Random) -> int:
    return round(10 ** draw.uniform(0.5, 4))


@pytest.mark.model
def test_prompt_tokens_are_those_of_the_run(published: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((60, 90), (200, 130), (31, 300))]
    prompts = ["What is it?", "Is <|im_end|> here? 中文 🙂", "", "请给出这张图片的详细描述。"]
    cells = pd.Series([images[0], images[1], images[2], [images[0], images[2]]])
    options = {"model_name": str(published), "dtype": "float32", "max_caption_length": 1, "progress": False}
    for system in (None, "Answer in one word. <|image_pad|>"):
        asked = {**options, "system_prompt": system, "start_with": None if system is None else "A photo of "}
        run = cells.vl.run(prompts=prompts, **asked)
        plan = cells.vl.plan(prompts=prompts, **asked).rows

        assert (run["status"] == "ok").all(), run["error"].tolist()
        assert plan["prompt_tokens"].tolist() == run["prompt_tokens"].tolist()
        assert plan["resized_height"].tolist() == run["height"].tolist()
        assert plan["room"].tolist() == (run["prompt_tokens"] + 1).tolist()


@pytest.mark.model
def test_a_prompt_beyond_the_context_is_an_error_of_its_row_as_in_the_run(published: Path) -> None:
    options = {"model_name": str(published), "dtype": "float32", "max_caption_length": 4090, "progress": False}
    cells = pd.Series([np.zeros((500, 500, 3), np.uint8)])

    with pytest.warns(UserWarning, match="4096 tokens"):
        run = cells.vl.run(**options)

    planned = cells.vl.plan(**options).rows
    assert planned["error"].tolist() == run["error"].tolist()
    assert planned["stage"].tolist() == ["generate"]


@pytest.mark.model
def test_neither_weights_nor_pixels_are_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from qwenvl_kit.torch_backend import backend

    file = tmp_path / "a.png"
    file.write_bytes(png(640, 480))
    monkeypatch.setattr(backend.TorchSpec, "load", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))

    plan = pd.Series([str(file)]).vl.plan(**DEMO)

    assert plan.rows["prompt_tokens"].tolist() == [37]
    assert plan.fits is True
    assert plan.memory["bytes"].sum() == plan.peak["cpu"]


@pytest.mark.model
def test_without_a_measurement_the_time_is_unknown_and_the_command_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    plan = pd.Series([png(64, 64)]).vl.plan(**DEMO)

    assert plan.time is None
    assert "unknown: run qwenvl-kit bench" in str(plan)
    assert "seconds" not in plan.rows


@pytest.mark.model
def test_the_time_is_the_sum_of_what_bench_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from qwenvl_kit import Config
    from qwenvl_kit.calibration import Calibration, device_label, write_calibration
    from qwenvl_kit.executors.specs import make_spec

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = make_spec(Config(**DEMO))
    measured = Calibration(
        device=device_label("cpu"),
        fingerprint=spec.fingerprint,
        model="demo",
        backend="torch",
        dtype="float32",
        vision_s={48: 4.8},
        prefill_s={37: 3.7},
        decode_s={1: 1.0, 2: 1.5, 4: 2.0},
    )
    write_calibration(measured)

    plan = pd.Series([png(640, 480), png(640, 480), None]).vl.plan(max_caption_length=10, **DEMO)

    assert plan.time is not None
    assert plan.rows["seconds"].tolist() == pytest.approx([8.5, 8.5, 0.0])
    assert plan.time.total_s == pytest.approx(2 * 8.5 + 10 * 1.5)
    assert "at most 32 s" in str(plan)


def test_the_command_prints_the_plan_and_writes_the_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(png(640, 480))
    (tmp_path / "b.txt").write_text("no image")
    out = tmp_path / "tokens.csv"

    assert main(["plan", str(tmp_path / "a.png"), str(tmp_path / "b.txt"), "--backend", "echo", "--out", str(out)]) == 0

    printed = capsys.readouterr().out
    assert "1 to run, 1 error" in printed
    assert "b.txt: Not an image" in printed
    assert pd.read_csv(out)["visual_tokens"].fillna(0).tolist() == [391, 0]


def test_options_are_checked_as_in_a_run() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        pd.Series([None]).vl.plan(batch_size=0)
