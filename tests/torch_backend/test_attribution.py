"""Maps of words are those of transformers' own attention, hidden tokens and gradients, alone and in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import qwenvl_kit
from qwenvl_kit.demo import model_dir
from qwenvl_kit.explain import Explanations
from qwenvl_kit.inference.words import Word

EXACT: dict[str, Any] = {"dtype": "float32", "use_flash_attention_2": False, "progress": False}
PROMPT = "What is in the picture?"
SIZES = [(112, 112), (168, 84), (84, 168), (168, 56)]  # which neither side resizes

Reference = Callable[[Image.Image, list[int]], "tuple[dict[str, torch.Tensor], int]"]


class Plain:
    """transformers' own model with eager attention."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        ).eval()
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)

    def inputs(self, picture: Image.Image, answer: Sequence[int]) -> tuple[dict[str, torch.Tensor], int]:
        """Return the model's inputs for a prompt and its answer, and the number of the prompt's tokens."""
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
        text = self.processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        asked = self.processor(text=[text], images=[picture], return_tensors="pt")
        ids = torch.cat([asked["input_ids"], torch.tensor([list(answer)])], dim=1)
        types = torch.cat([asked["mm_token_type_ids"], torch.zeros(1, len(answer), dtype=torch.long)], dim=1)
        n_prompt = asked["input_ids"].shape[1]
        return {
            **asked,
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": types,
        }, n_prompt

    def visual(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the places of visual tokens."""
        return (inputs["input_ids"][0] == self.model.config.image_token_id).nonzero()[:, 0]

    @torch.inference_mode()
    def attention(self, picture: Image.Image, answer: Sequence[int]) -> NDArray[np.float32]:
        """Return the weights (layers, heads, tokens of the answer, visual tokens) of the tokens that predict it."""
        inputs, n_prompt = self.inputs(picture, answer)
        weights = torch.stack(self.model(**inputs, output_attentions=True).attentions)[:, 0]
        found: NDArray[np.float32] = weights[:, :, n_prompt - 1 : -1, self.visual(inputs)].numpy()
        return found


@pytest.fixture(scope="module")
def embedded() -> Plain:
    return Plain(model_dir())


def each_token_a_word(ids: Sequence[int], decode: object) -> list[Word]:
    return [Word(str(token), at, at + 1, (at,)) for at, token in enumerate(ids)]


def explain(pictures: Sequence[Any], folder: Path, **options: Any) -> Explanations:
    asked = {"prompt": PROMPT, "max_caption_length": 6, "model_name": str(folder), **EXACT, **options}
    return pd.Series(list(pictures)).vl.explain(**asked)


@pytest.mark.parametrize("name", ["published", "demo"])
def test_attention_is_eager_attention_for_every_layer_head_and_token_alone_and_in_a_batch(
    name: str, published: Path, embedded: Plain, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plain = (published, Plain(published)) if name == "published" else (model_dir(), embedded)
    monkeypatch.setattr("qwenvl_kit.torch_backend.attribution.words_of", each_token_a_word)
    some = [one.resize(size) for one, size in zip(pictures, SIZES, strict=False)]
    wanted: dict[int, NDArray[np.float32]] = {}
    for batch_size in (4, 1):
        for head in range(plain.model.config.text_config.num_attention_heads):
            found = explain(
                some, folder, layers="all", heads=[head], correct=False, batch_size=batch_size, rows_in_flight=4
            )
            assert len(found) == len(some)
            answered = [(at, one) for at, one in enumerate(found) if one.words]  # random weights may end at once
            assert len(answered) > 1
            for at, one in answered:
                if at not in wanted:
                    wanted[at] = plain.attention(some[at], [int(word) for word in one.words])
                weights = np.stack([word.weights for word in one.maps.words], axis=1)  # (layers, tokens, visual)
                np.testing.assert_allclose(weights, wanted[at][:, head], atol=1e-5, rtol=0)
            if batch_size == 1:
                break  # one head alone; the batch had all


def test_the_correction_subtracts_what_a_grey_picture_gets_for_the_same_answer(
    embedded: Plain, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenvl_kit.torch_backend.attribution.words_of", each_token_a_word)
    picture = pictures[0].resize((112, 112))
    grey = Image.fromarray(np.full((112, 112, 3), 127, np.uint8))
    (one,) = explain([picture], model_dir(), layers="all")
    answer = [int(word) for word in one.words]
    wanted = (embedded.attention(picture, answer) - embedded.attention(grey, answer)).mean(axis=1)
    weights = np.stack([word.weights for word in one.maps.words], axis=1)
    np.testing.assert_allclose(weights, wanted, atol=1e-5, rtol=0)


def test_hidden_tokens_cost_a_word_what_transformers_says_when_it_cannot_attend_to_them(
    embedded: Plain, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenvl_kit.torch_backend.attribution.words_of", each_token_a_word)
    hidden = np.zeros((1, 16), np.bool_)
    hidden[0, [1, 2, 5]] = True
    monkeypatch.setattr("qwenvl_kit.torch_backend.attribution.group_masks", lambda *_: hidden)
    monkeypatch.setattr("qwenvl_kit.torch_backend.attribution.spread_drops", lambda drops, groups: drops)
    picture = pictures[0].resize((112, 112))
    (one,) = explain([picture], model_dir(), method="occlusion")
    answer = [int(word) for word in one.words]
    inputs, n_prompt = embedded.inputs(picture, answer)

    def logprobs(places: torch.Tensor) -> torch.Tensor:
        n_tokens = inputs["input_ids"].shape[1]
        mask = torch.full((n_tokens, n_tokens), -torch.inf).triu(1)
        mask[:, places] = -torch.inf
        mask.fill_diagonal_(0)
        with torch.inference_mode():
            rows = embedded.model.model.get_rope_index(**positions_of(inputs))[0]
            given = {**inputs, "attention_mask": {"full_attention": mask[None, None]}, "position_ids": rows}
            logits = embedded.model(**given).logits[0, n_prompt - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]

    visual = embedded.visual(inputs)
    whole, without = logprobs(visual[:0]), logprobs(visual[hidden[0]])
    np.testing.assert_allclose([word.logprob for word in one.maps.words], whole, atol=1e-4)
    drops = [word.weights[0, 0] for word in one.maps.words]
    np.testing.assert_allclose(drops, whole - without, atol=1e-4)


def positions_of(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: inputs[name] for name in ("input_ids", "image_grid_thw", "attention_mask", "mm_token_type_ids")}


def test_gradients_are_those_of_transformers_through_packed_weights_too(
    embedded: Plain, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenvl_kit.torch_backend.attribution.words_of", each_token_a_word)
    picture = pictures[0].resize((112, 112))
    (one,) = explain([picture], model_dir(), method="gradient")
    answer = [int(word) for word in one.words]
    inputs, n_prompt = embedded.inputs(picture, answer)
    with torch.no_grad():
        model = embedded.model.model
        features = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output[0]
        tokens = model.language_model.embed_tokens(inputs["input_ids"])
        positions = model.get_rope_index(**positions_of(inputs))[0]
    features.requires_grad_()
    embeds = tokens.index_put((torch.tensor([0]), embedded.visual(inputs)), features)
    states = model.language_model(inputs_embeds=embeds, position_ids=positions, use_cache=False).last_hidden_state
    logits = embedded.model.lm_head(states)[0, n_prompt - 1 : -1]
    logprobs = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
    for at, word in enumerate(one.maps.words):
        (gradient,) = torch.autograd.grad(logprobs[at], features, retain_graph=True)
        wanted = (gradient * features).sum(1).detach()
        np.testing.assert_allclose(word.weights[0], wanted, atol=1e-5, rtol=1e-3)


def test_explained_answers_are_those_of_caption_and_last_run_has_their_maps(pictures: list[Image.Image]) -> None:
    some = pd.Series(pictures[:3])
    asked = {"prompt": PROMPT, "model_name": "demo", **EXACT}
    found = some.vl.explain(**asked)
    frame = qwenvl_kit.last_run()
    assert frame is not None
    assert [one.answer for one in found] == some.vl.caption(**asked).tolist()
    assert frame["maps"].notna().all()
    assert "maps" not in found.results


def test_two_pictures_of_a_row_have_a_map_each(pictures: list[Image.Image]) -> None:
    pair = [pictures[0].resize((112, 112)), pictures[1].resize((168, 84))]
    for method in ("attention", "occlusion", "gradient"):
        (one,) = explain([pair], model_dir(), method=method)
        assert one.maps.grids == ((4, 4), (3, 6))
        assert one.map(0, picture=1).shape == (84, 168)
        assert set(one.frame()["picture"]) == {0, 1}


def test_curves_end_where_nothing_and_everything_is_hidden(pictures: list[Image.Image]) -> None:
    (one,) = explain([pictures[0].resize((112, 112))], model_dir(), check=True)
    for at, word in enumerate(one.maps.words):
        curves = one.curves(at)
        assert curves["deletion"].iloc[0] == pytest.approx(np.exp(word.logprob), abs=1e-4)
        assert curves["insertion"].iloc[-1] == pytest.approx(np.exp(word.logprob), abs=1e-4)
        assert curves["deletion"].iloc[-1] == pytest.approx(curves["insertion"].iloc[0], abs=1e-6)
    assert one.check()["word"].tolist() == one.words


def test_a_layer_that_the_model_lacks_is_the_rows_error(pictures: list[Image.Image]) -> None:
    with pytest.warns(qwenvl_kit.RowErrorWarning, match=r"layers contains 9, but the model has 5 layers"):
        found = explain(pictures[:1], model_dir(), layers=[9])
    assert len(found) == 0


def test_weights_that_accelerate_loads_from_disk_give_the_same_maps(
    published: Path, pictures: list[Image.Image]
) -> None:
    some = [pictures[0].resize((112, 112))]
    on_disk = {"model.visual": "cpu", "model.language_model": "disk", "lm_head": "cpu"}
    for method in ("attention", "occlusion", "gradient"):
        (plain,) = explain(some, published, method=method)
        (one,) = explain(some, published, method=method, device_map=on_disk)
        assert one.answer == plain.answer
        for word, wanted in zip(one.maps.words, plain.maps.words, strict=True):
            np.testing.assert_allclose(word.weights, wanted.weights, atol=1e-4, rtol=1e-3)


def test_chinese_answers_have_a_map_for_each_character(pictures: list[Image.Image]) -> None:
    (one,) = explain(pictures[:1], model_dir(), prompt="描述这张图片。", max_caption_length=48)
    assert "".join(one.words) == "".join(filter(str.isalnum, one.answer))
    assert all(len(word) == 1 for word in one.words)
