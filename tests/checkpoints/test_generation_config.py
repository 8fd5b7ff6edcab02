"""Settings of a checkpoint's generation_config.json act as in transformers, or are recorded as ignored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from qwenvl_kit import CheckpointError, Config
from qwenvl_kit.checkpoints.checkpoint import read
from qwenvl_kit.checkpoints.generation_config import defaults_of
from qwenvl_kit.checkpoints.hf_logging import silence_transformers
from qwenvl_kit.checkpoints.resolve import answer_fields
from qwenvl_kit.demo import model_dir
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.export import to_onnx

PROMPT = "Describe this picture."
N_TOKENS = 24
RUN = {"prompt": PROMPT, "progress": False, "use_flash_attention_2": False, "max_caption_length": N_TOKENS}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """One of a size that needs no resizing."""
    image = Image.new("RGB", (112, 112), (240, 240, 230))
    ImageDraw.Draw(image).ellipse((30, 30, 80, 80), fill=(200, 30, 30))
    return image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir(), tmp_path / "model"))


def ask_for(folder: Path, settings: Mapping[str, Any]) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def card(folder: Path, picture: Image.Image, **options: Any) -> str:
    """The model card's loop: transformers reads generation_config.json itself."""
    with silence_transformers():
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
    with torch.inference_mode(), silence_transformers():
        ids = model.generate(**inputs, max_new_tokens=N_TOKENS, do_sample=False, **options)
    answer: str = processor.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)[0]
    return answer


def run(folder: Path, picture: Image.Image, **options: Any) -> pd.DataFrame:
    cells = pd.Series([np.asarray(picture), np.full((112, 140, 3), 90, np.uint8)], dtype=object)
    frame: pd.DataFrame = cells.vl.run(model_name=str(folder), **{**RUN, **options})
    assert frame["status"].tolist() == ["ok", "ok"]
    return frame


HONOURED: list[dict[str, Any]] = [
    {"no_repeat_ngram_size": 2},
    {"suppress_tokens": list(range(500, 700))},
    {"begin_suppress_tokens": list(range(300))},
    {"min_new_tokens": N_TOKENS},
    {"min_length": 64},
    {"bad_words_ids": [[token] for token in range(200, 400)]},
    {"sequence_bias": [[[token], 5.0] for token in range(400, 500)]},
    {"no_repeat_ngram_size": 3, "repetition_penalty": 1.3, "min_new_tokens": 20, "suppress_tokens": [5, 6]},
]


@pytest.mark.parametrize("settings", HONOURED, ids=lambda settings: "+".join(settings))
def test_settings_give_the_text_of_generate(folder: Path, picture: Image.Image, settings: dict[str, Any]) -> None:
    ask_for(folder, settings)

    found = run(folder, picture, dtype="float32", threads=1)

    assert found["text"].iloc[0] == card(folder, picture)
    assert not [note for note in found.attrs["effective"]["notes"] if "generation_config" in note]


@pytest.mark.parametrize(
    "settings",
    [
        {"no_repeat_ngram_size": 2},
        {"min_length": 64},
        {"min_new_tokens": 30},
        {"length_penalty": 3.0, "early_stopping": True},
    ],
    ids=lambda settings: "+".join(settings),
)
def test_beams_honour_them_too(folder: Path, picture: Image.Image, settings: dict[str, Any]) -> None:
    ask_for(folder, settings)

    found = run(folder, picture, dtype="float32", threads=1, num_beams=3, batch_size=2)

    wanted = {**settings, "min_new_tokens": N_TOKENS} if "min_new_tokens" in settings else settings
    ask_for(folder, wanted)  # generate warns of a least length beyond the largest
    assert found["text"].iloc[0] == card(folder, picture, num_beams=3)


def test_an_export_honours_them_too(folder: Path, picture: Image.Image, tmp_path: Path) -> None:
    ask_for(folder, {"no_repeat_ngram_size": 2, "min_new_tokens": 20, "suppress_tokens": [5, 6]})
    export = to_onnx(folder, tmp_path / "export", verify_rows=0).path

    assert run(export, picture, backend="onnx")["text"].iloc[0] == card(folder, picture)


def test_without_generation_config_the_settings_of_config_json_serve(folder: Path, picture: Image.Image) -> None:
    ask_for(folder, {"no_repeat_ngram_size": 2})
    wanted = run(folder, picture, dtype="float32", threads=1)["text"].tolist()
    (folder / "generation_config.json").unlink()
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "no_repeat_ngram_size": 2}))

    assert run(folder, picture, dtype="float32", threads=1)["text"].tolist() == wanted


IGNORED: dict[str, Any] = {
    "exponential_decay_length_penalty": [5, 1.5],
    "forced_eos_token_id": 1328,
    "forced_bos_token_id": 1,
    "max_time": 1.0,
    "stop_strings": ["."],
    "guidance_scale": 1.5,
    "num_beams": 4,
    "encoder_repetition_penalty": 1.2,
    "watermarking_config": {"bias": 2.0},
    "penalty_alpha": 0.6,
    "a_setting_of_a_later_version": 3,
}


@pytest.mark.parametrize("name", IGNORED)
def test_a_setting_that_is_ignored_is_recorded_by_name(folder: Path, name: str) -> None:
    ask_for(folder, {name: IGNORED[name]})

    notes = make_spec(Config(model_name=str(folder))).resolved.record()["notes"]

    assert [note for note in notes if f"generation_config.{name}=" in note]


def test_settings_that_the_caller_replaces_or_that_do_nothing_are_not_recorded(folder: Path) -> None:
    replaced = {"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.001, "repetition_penalty": 1.05}
    neutral = {
        "num_beams": 1,
        "length_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "min_length": 0,
        "early_stopping": False,
    }
    empty: dict[str, Any] = {"bad_words_ids": None, "suppress_tokens": []}
    neutral |= {"diversity_penalty": 0.0, "guidance_scale": 1.0}
    without_effect = {"max_length": 20, "max_new_tokens": 5, "use_cache": True, "min_p": 0.5}
    ask_for(folder, {**replaced, **neutral, **empty, **without_effect})
    resolved = make_spec(Config(model_name=str(folder), use_flash_attention_2=False)).resolved

    assert resolved.notes == ()
    assert resolved.generation == ()


def test_what_only_sampling_would_do_is_recorded_under_sampling(folder: Path) -> None:
    ask_for(folder, {"min_p": 0.5})
    checkpoint = read(folder)

    assert defaults_of(checkpoint, Config()).notes == ()
    assert "min_p" in str(defaults_of(checkpoint, Config(do_sample=True)).notes[0])


def test_a_callers_own_beams_are_not_recorded_as_ignored(folder: Path) -> None:
    ask_for(folder, {"num_beams": 4})

    assert defaults_of(read(folder), Config(num_beams=2)).notes == ()


def test_honoured_settings_are_part_of_the_key_of_an_answer(folder: Path) -> None:
    plain = make_spec(Config(model_name=str(folder))).resolved
    ask_for(folder, {"no_repeat_ngram_size": 2})
    asking = make_spec(Config(model_name=str(folder))).resolved

    assert answer_fields(asking)["generation"] == {"no_repeat_ngram_size": 2}
    assert "generation" not in answer_fields(plain), "keys of stored results stay as they were"


@pytest.mark.parametrize(
    "settings",
    [
        {"no_repeat_ngram_size": "2"},
        {"suppress_tokens": "all"},
        {"min_new_tokens": -1},
        {"min_length": [1]},
        {"bad_words_ids": [1]},
        {"bad_words_ids": [[5000]]},
        {"sequence_bias": {"a": 1}},
    ],
    ids=str,
)
def test_a_setting_that_cannot_be_used_is_refused_before_any_row(folder: Path, settings: dict[str, Any]) -> None:
    ask_for(folder, settings)

    with pytest.raises(CheckpointError) as caught:
        make_spec(Config(model_name=str(folder)))

    assert str(folder) in str(caught.value)
    assert next(iter(settings)) in str(caught.value)
