"""Training applies the stock weights the way the stock model does, and leaves a standard folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from qwenvl_kit.demo.scenes import LARGE_WORLD, draw, resized_boxes, sample_scenes
from qwenvl_kit.demo.training import train
from qwenvl_kit.demo.training.checkpoint import MAX_PIXELS, MIN_PIXELS, build_model, build_processor
from qwenvl_kit.demo.training.forward import predict, run_text, run_vision
from qwenvl_kit.demo.training.images import IGNORED, IMAGE_TOKENS, pack_images
from qwenvl_kit.demo.training.muon import orthogonalise
from qwenvl_kit.demo.training.rows import FORMS, ROW_TOKENS, RowBatch, RowPacker
from qwenvl_kit.demo.training.tokenizer import build_tokenizer

SCENES = sample_scenes(6, seed=1, world=LARGE_WORLD, split="train")


def test_a_packed_row_gives_the_logits_that_the_stock_model_gives_alone() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer).eval()
    packer, images = RowPacker(tokenizer, LARGE_WORLD), pack_images(SCENES)
    rows = packer.pack(SCENES, images, np.random.default_rng(0))
    start = packer.image_start
    with torch.no_grad():
        features = run_vision(model, images.patches, images.places, images.windows)
        words = model.model.language_model.embed_tokens(rows.tokens)
        embeddings = torch.cat([words[:, :start], features, words[:, start + IMAGE_TOKENS :]], dim=1)
        packed = predict(model, run_text(model, embeddings, rows.positions, rows.allowed).last)
    processor = build_processor(tokenizer)
    beginning = tokenizer.decode(packer._prefix) + "<|image_pad|><|vision_end|>"
    for index, scene in enumerate(SCENES):
        inputs = processor(text=[beginning], images=[draw(scene)], return_tensors="pt")
        after_image = inputs["input_ids"].shape[1]
        assert after_image == start + int(np.prod(images.grids[index])) + 1
        segment = slice(start + IMAGE_TOKENS + 1, _end_of_first_segment(rows, index, start + IMAGE_TOKENS + 1))
        ids = torch.cat([inputs["input_ids"][0], rows.tokens[index, segment]])[None]
        with torch.no_grad():
            alone = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == model.config.image_token_id).int(),
                pixel_values=inputs["pixel_values"],
                image_grid_thw=inputs["image_grid_thw"],
            ).logits[0]
        # The two resizers round some pixels differently, by one level of 255.
        torch.testing.assert_close(packed[index, segment], alone[after_image:], atol=2e-3, rtol=0)


def _end_of_first_segment(rows: RowBatch, row: int, head: int) -> int:
    times = rows.positions[0, row]
    return next(place for place in range(head + 1, ROW_TOKENS) if times[place] < times[place - 1])


def test_every_image_of_the_claimed_aspects_fits_the_room_for_it() -> None:
    grids = set(pack_images(sample_scenes(200, seed=5, world=LARGE_WORLD)).grids)
    assert grids == {(4, 4), (3, 4), (4, 3), (3, 5), (5, 3), (3, 6), (6, 3)}
    assert all(MIN_PIXELS <= rows * columns * 28 * 28 <= MAX_PIXELS for rows, columns in grids)


def test_every_object_owns_a_token_of_the_image() -> None:
    owners = pack_images(sample_scenes(60, seed=6, world=LARGE_WORLD)).owners
    for row, scene in zip(owners, sample_scenes(60, seed=6, world=LARGE_WORLD), strict=True):
        assert {int(owner) for owner in row if owner not in (-1, IGNORED)} == set(range(len(scene.things)))


def test_a_segment_sees_only_prefix_image_and_itself() -> None:
    packer, images = RowPacker(build_tokenizer(), LARGE_WORLD), pack_images(SCENES)
    rows = packer.pack(SCENES, images, np.random.default_rng(0))
    assert rows.allowed.shape == (len(SCENES), ROW_TOKENS, ROW_TOKENS)
    head = packer.image_start + IMAGE_TOKENS + 1
    ends = torch.tensor(packer._turn)
    for row in range(len(SCENES)):
        second = _end_of_first_segment(rows, row, head)
        assert not rows.allowed[row, second:, head:second].any()
        assert rows.allowed[row, second, : packer.image_start].all()
        assert (rows.tokens[row, head:second].unfold(0, len(ends), 1) == ends).all(dim=1).sum() == 1


def test_a_coordinate_is_one_token_between_those_of_its_neighbours() -> None:
    tokenizer = build_tokenizer()
    packer, images = RowPacker(tokenizer, LARGE_WORLD), pack_images(SCENES)
    rows = packer.pack(SCENES, images, np.random.default_rng(0))
    is_coordinate = rows.beside[:, 0] != rows.targets
    assert is_coordinate.any()
    assert {FORMS[form] for form in rows.forms[is_coordinate].tolist()} == {"place"}
    for target, (below, above) in zip(rows.targets[is_coordinate], rows.beside[is_coordinate], strict=True):
        value = int(tokenizer.decode([target]))
        assert (tokenizer.decode([below]), tokenizer.decode([above])) == (str(value - 1), str(value + 1))


def test_rows_teach_all_forms_and_none_is_crowded_out() -> None:
    packer, scenes = RowPacker(build_tokenizer(), LARGE_WORLD), SCENES * 6
    rows = packer.pack(scenes, pack_images(scenes), np.random.default_rng(0))
    weights = {form: float(rows.weights[rows.forms == at].sum()) for at, form in enumerate(FORMS)}
    assert min(weights.values()) > 0.05 * sum(weights.values())
    assert weights["caption"] + weights["question"] > 0.3 * sum(weights.values())


def test_whether_an_array_has_one_more_object_weighs_most_in_it() -> None:
    tokenizer = build_tokenizer()
    rows = RowPacker(tokenizer, LARGE_WORLD).pack(SCENES, pack_images(SCENES), np.random.default_rng(0))
    places = rows.forms == FORMS.index("place")
    texts = dict(zip(map(tokenizer.decode, rows.targets[places]), rows.weights[places].tolist(), strict=True))
    deciding = {text for text in texts if text in ('"},\n', '"}\n', "[\n", "[]\n")}
    assert deciding
    assert {texts[text] for text in deciding} == {max(texts.values())}


def test_tokens_of_an_object_know_its_edges() -> None:
    images = pack_images(SCENES)
    for row, scene in enumerate(SCENES):
        height, width = (28 * side for side in images.grids[row])
        placed = torch.tensor(resized_boxes(scene, height=height, width=width))
        owned = images.owners[row] >= 0
        torch.testing.assert_close(images.edges[row][owned], placed[images.owners[row][owned]], check_dtype=False)
        assert ((images.edges - images.centres())[row][owned].abs() < 56).all()


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalise(matrix))
    assert singular.min() > 0.5
    assert singular.max() < 1.3


def test_a_short_run_leaves_a_standard_folder_and_can_be_resumed(tmp_path: Path) -> None:
    options = ["--out", str(tmp_path), "--processes", "1", "--vision-share", "0.5"]
    train.main([*options, "--minutes", "0.05"])
    first = torch.load(tmp_path / "state.pt", weights_only=True)
    longer = 1.2 * first["seconds"] / 60
    train.main([*options, "--minutes", str(longer), "--resume"])
    second = torch.load(tmp_path / "state.pt", weights_only=True)
    assert first["seconds"] < second["seconds"]
    assert second["stage"] == "joint"
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 8_000_000
    content = [{"type": "image"}, {"type": "text", "text": "图中有什么？"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[draw(SCENES[0])], return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=3)
    assert tokens.shape[1] > inputs["input_ids"].shape[1]
