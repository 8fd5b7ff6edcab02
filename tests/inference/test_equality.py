"""The same question to the same picture gets the same tokens, however it is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.checkpoints import card_loop
from PIL import Image

import qwenvl_kit
from qwenvl_kit import Control
from qwenvl_kit.demo import model_dir
from qwenvl_kit.options import DEFAULT_PROMPT

EXACT = {"dtype": "float32", "use_flash_attention_2": False, "progress": False}


@pytest.fixture(params=["published", "demo"])
def checkpoint(request: pytest.FixtureRequest, published: Path) -> Path:
    return published if request.param == "published" else model_dir()


@pytest.fixture
def card_answers(checkpoint: Path, pictures: list[Image.Image], request: pytest.FixtureRequest) -> list[str]:
    return _card_answers(checkpoint, pictures, request.config)


def _card_answers(checkpoint: Path, pictures: list[Image.Image], config: pytest.Config) -> list[str]:
    known = config.stash.setdefault(_CARD, {})
    if checkpoint not in known:
        known[checkpoint] = card_loop(checkpoint, pictures, [DEFAULT_PROMPT] * len(pictures), max_new_tokens=48)
    return known[checkpoint]


_CARD = pytest.StashKey[dict[Path, list[str]]]()


@pytest.mark.parametrize("batch_size", [1, 4, 24])
def test_answers_equal_the_model_cards_loop_at_every_batch_size(
    checkpoint: Path, pictures: list[Image.Image], card_answers: list[str], batch_size: int
) -> None:
    captions = pd.Series(pictures).vl.caption(
        model_name=str(checkpoint), batch_size=batch_size, max_caption_length=48, **EXACT
    )

    assert captions.tolist() == card_answers
    assert len(set(card_answers)) > 12, "answers that hardly differ would prove little"


@pytest.mark.parametrize("batch_size", [1, 5])
def test_an_answer_that_is_begun_goes_on_as_the_models_own_template_says(
    checkpoint: Path, pictures: list[Image.Image], batch_size: int
) -> None:
    begun = "the picture shows <|im_end|> a"
    wanted = card_loop(checkpoint, pictures[:5], ["What is it?"] * 5, max_new_tokens=12, start_with="the picture shows")
    options = {"model_name": str(checkpoint), "prompt": "What is it?", "max_caption_length": 12, **EXACT}

    found = pd.Series(pictures[:5]).vl.run(start_with="the picture shows ", batch_size=batch_size, **options)
    beams = pd.Series(pictures[:2]).vl.caption(start_with="the picture shows", num_beams=2, **options)
    literal = pd.Series(pictures[:1]).vl.caption(start_with=begun, **options)

    assert found["text"].tolist() == wanted
    assert (found["new_tokens"] <= 12).all(), "the beginning is not counted"
    assert all(text.startswith("the picture shows") for text in beams)
    assert literal.iloc[0].startswith(begun), "the name of a control token stays text"


def test_a_streamed_answer_begins_with_its_beginning(pictures: list[Image.Image]) -> None:
    heard: list[str] = []
    control = Control(on_token=lambda _, text: heard.append(text))

    caption = pd.Series(pictures[:1]).vl.caption(model_name="demo", start_with="There is", control=control, **EXACT)

    assert "".join(heard) == caption.iloc[0]
    assert caption.iloc[0].startswith("There is")


def test_answers_stay_the_same_shuffled_and_with_duplicates(
    checkpoint: Path, pictures: list[Image.Image], card_answers: list[str]
) -> None:
    order = np.random.default_rng(0).permutation([*range(24), *range(24), 3, 3])
    shuffled = pd.Series([pictures[at] for at in order])

    run = shuffled.vl.run(model_name=str(checkpoint), batch_size=5, max_caption_length=48, **EXACT)

    assert run["text"].tolist() == [card_answers[at] for at in order]
    assert (~run["cached"]).sum() == 24, "each distinct picture goes through the model once"


def test_offloading_to_disk_changes_no_token(
    checkpoint: Path, pictures: list[Image.Image], card_answers: list[str]
) -> None:
    placed = {"model.visual": "cpu", "model.language_model": "disk", "lm_head": "disk"}

    captions = pd.Series(pictures[:8]).vl.caption(
        model_name=str(checkpoint), device_map=placed, max_caption_length=48, **EXACT
    )

    assert captions.tolist() == card_answers[:8]
    assert captions.attrs["effective"]["device"] == "cpu+disk"


def test_compiled_steps_change_no_token_and_their_warm_up_is_on_record(
    checkpoint: Path, pictures: list[Image.Image], card_answers: list[str]
) -> None:
    captions = pd.Series(pictures).vl.caption(
        model_name=str(checkpoint), torch_compile=True, batch_size=5, max_caption_length=48, **EXACT
    )

    assert captions.tolist() == card_answers
    assert captions.attrs["effective"]["torch_compile"] is True
    assert any("Decode steps were compiled in" in note for note in captions.attrs["effective"]["notes"])


def test_seeded_samples_do_not_depend_on_batch_size_or_neighbours(
    checkpoint: Path, pictures: list[Image.Image]
) -> None:
    sampling = {
        "do_sample": True,
        "seed": 7,
        "temperature": 4.0,
        "max_caption_length": 16,
        "model_name": str(checkpoint),
        **EXACT,
    }
    together = pd.Series(pictures[:6]).vl.caption(batch_size=6, **sampling).tolist()

    alone = [pd.Series([picture]).vl.caption(batch_size=1, **sampling).iloc[0] for picture in pictures[:6]]
    reversed_ = pd.Series(pictures[:6][::-1]).vl.caption(batch_size=4, **sampling).tolist()[::-1]
    other_seed = pd.Series(pictures[:6]).vl.caption(batch_size=6, **{**sampling, "seed": 8}).tolist()

    assert together == alone == reversed_
    assert together != other_seed


def test_several_pictures_of_one_row_are_seen_in_order(checkpoint: Path, pictures: list[Image.Image]) -> None:
    cells = pd.Series([[pictures[0], pictures[1]], [pictures[1], pictures[0]], [pictures[0]]])

    run = cells.vl.run(model_name=str(checkpoint), max_caption_length=24, **EXACT)

    assert (run["status"] == "ok").all()
    assert run["prompt_tokens"].iloc[0] == run["prompt_tokens"].iloc[1] > run["prompt_tokens"].iloc[2]
    alone = pd.Series([[pictures[0], pictures[1]]]).vl.caption(
        model_name=str(checkpoint), max_caption_length=24, **EXACT
    )
    assert run["text"].iloc[0] == alone.iloc[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_dtype_runs_and_is_on_record(published: Path, pictures: list[Image.Image], dtype: str) -> None:
    captions = pd.Series(pictures[:2]).vl.caption(
        model_name=str(published), dtype=dtype, max_caption_length=4, use_flash_attention_2=False, progress=False
    )

    assert captions.notna().all()
    assert captions.attrs["effective"]["dtype"] == dtype
    qwenvl_kit.unload()
