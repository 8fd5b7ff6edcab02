"""Whole runs on a GPU: tokens of the model card, real exhaustion of memory, offloading, and no growth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from gpu.conftest import DEVICE, draw_images, on_gpu
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

import qwenvl_kit
from qwenvl_kit.checkpoints.checkpoint import read
from qwenvl_kit.checkpoints.loading import load_processor
from qwenvl_kit.demo import model_dir
from qwenvl_kit.images.resize import resize, target_size
from qwenvl_kit.inference.patches import PatchCutter
from qwenvl_kit.options import DEFAULT_PROMPT

EXACT: dict[str, Any] = {
    "dtype": "float32",
    "use_flash_attention_2": False,
    "progress": False,
    "max_caption_length": 24,
}
HALF: dict[str, Any] = {
    "dtype": "bfloat16",
    "progress": False,
    "max_caption_length": 48,
    "repetition_penalty": 1.0,
}
_GIB = 2**30


def n_different(one: pd.Series, other: pd.Series | list[str]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def card_answers(folder: Path, images: list[Image.Image], max_new_tokens: int) -> list[str]:
    """Return the answers of transformers' generate, one image after the other, on the same device."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, device_map=DEVICE).eval()
    processor = AutoProcessor.from_pretrained(folder)
    geometry = read(folder).geometry
    content = [{"type": "image"}, {"type": "text", "text": DEFAULT_PROMPT}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    answers: list[str] = []
    for image in images:
        pixels = np.asarray(image.convert("RGB"))
        sized = Image.fromarray(resize(pixels, target_size(pixels.shape[:2], geometry)))
        inputs = processor(text=[text], images=[sized], do_resize=False, return_tensors="pt").to(DEVICE)
        ids = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, temperature=None, top_p=None, top_k=None
        )
        new = ids[:, inputs.input_ids.shape[1] :]
        answers += processor.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return answers


@pytest.mark.parametrize("which", ["tiny", "demo"])
@pytest.mark.parametrize("torch_compile", [False, True], ids=["eager", "compiled"])
def test_float32_tokens_are_those_of_the_model_card(
    which: str, torch_compile: bool, tiny: Path, images: list[Image.Image]
) -> None:
    folder = tiny if which == "tiny" else model_dir()
    wanted = card_answers(folder, images, 24)

    for batch_size in (1, 4, 12):
        answers = pd.Series(images).vl.caption(
            model_name=str(folder), batch_size=batch_size, torch_compile=torch_compile, **EXACT
        )
        assert n_different(answers, wanted) <= 1, batch_size  # a near-tie of a random model may fall otherwise


def test_a_gpu_gives_the_answers_of_the_cpu(images: list[Image.Image]) -> None:
    both = [pd.Series(images).vl.caption(model_name="demo", device_map=place, **EXACT) for place in ("cpu", DEVICE)]

    assert both[0].tolist() == both[1].tolist()


def test_patches_are_those_of_the_cpu_bit_for_bit() -> None:
    cutter = PatchCutter(load_processor(read(model_dir())).image_processor)
    pixels = np.random.default_rng(0).integers(0, 256, (252, 364, 3), dtype=np.uint8)

    assert torch.equal(cutter.cut(pixels, torch.device(DEVICE)).cpu(), cutter.cut(pixels))


@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "seed": 3}, {"repetition_penalty": 1.05}, {"num_beams": 2}, {"dtype": "float16"}],
    ids=str,
)
def test_every_kind_of_search_answers(options: dict[str, Any], tiny: Path, images: list[Image.Image]) -> None:
    run = pd.Series(images).vl.run(model_name=str(tiny), batch_size=4, **{**HALF, **options})

    assert (run["status"] == "ok").all(), run["error"].dropna().tolist()


@on_gpu
def test_with_too_little_memory_fewer_rows_run_at_once_and_answers_stay(tiny: Path) -> None:
    images = pd.Series(draw_images(48, (308, 420)))
    options = {**EXACT, "model_name": str(tiny), "batch_size": 48}
    torch.cuda.reset_peak_memory_stats()
    whole = images.vl.caption(**options)
    peak, total = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    qwenvl_kit.unload()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.75 * peak / total)
    try:
        fewer = images.vl.caption(**options)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert any(note.startswith("Out of memory") for note in fewer.attrs["effective"]["notes"])
    assert n_different(whole, fewer) <= 1


@on_gpu
@pytest.mark.parametrize("on_cpu", ["model.language_model", "model.visual"])
def test_modules_on_the_cpu_change_no_token(on_cpu: str, tiny: Path, images: list[Image.Image]) -> None:
    places: dict[str, int | str] = {"model.visual": 0, "model.language_model": 0, "lm_head": 0, on_cpu: "cpu"}
    plain, placed = (
        pd.Series(images[:4]).vl.caption(model_name=str(tiny), device_map=device_map, **EXACT)
        for device_map in (None, places)
    )

    assert placed.tolist() == plain.tolist()


@on_gpu
def test_thirty_runs_hold_no_more_memory_than_two(tiny: Path, images: list[Image.Image]) -> None:
    held = []
    for _ in range(30):
        pd.Series(images).vl.caption(model_name=str(tiny), batch_size=12, **HALF)
        held.append(torch.cuda.memory_allocated())

    assert held[-1] <= held[1] + 8 * 2**20


def test_rows_in_flight_are_sized_from_free_memory_and_change_no_answer(tiny: Path, images: list[Image.Image]) -> None:
    cells = pd.Series([*images, *images])
    alone = cells.vl.caption(model_name=str(tiny), rows_in_flight=1, **EXACT)
    run = cells.vl.run(model_name=str(tiny), **EXACT)

    (note,) = (note for note in run.attrs["effective"]["notes"] if "rows in flight" in note)
    assert int(note.split()[0]) > 4, note
    assert n_different(run["text"], alone) <= 1


@on_gpu
def test_the_cache_leaves_the_reserve_of_a_gpu_free(wide: Path, record_property: pytest.RecordProperty) -> None:
    free = []
    control = qwenvl_kit.Control(on_result=lambda _: free.append(torch.cuda.mem_get_info()[0]))
    run = pd.Series(draw_images(200, (84, 140))).vl.run(model_name=str(wide), control=control, **HALF)

    assert (run["status"] == "ok").all()
    assert min(free) > 0.5e9
    record_property("rows_in_flight", next(note for note in run.attrs["effective"]["notes"] if "in flight" in note))


@on_gpu
def test_a_large_image_beside_small_ones_is_answered(wide: Path, record_property: pytest.RecordProperty) -> None:
    """A large row waits until few others run, so that its room is not that of all slots; its cost is recorded."""
    small = draw_images(15, (84, 140))
    for name, images in (("small", small), ("mixed", [*small, Image.new("RGB", (1400, 840), "red")])):
        torch.cuda.reset_peak_memory_stats()
        run = pd.Series(images).vl.run(model_name=str(wide), batch_size=16, **HALF)
        record_property(f"peak_gib_{name}", torch.cuda.max_memory_allocated() / _GIB)
        assert (run["status"] == "ok").all()
