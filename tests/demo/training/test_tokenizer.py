"""The fixed vocabulary: one token for each word of the worlds, bytes for everything else."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from qwenvl_kit.demo.scenes import (
    LANGUAGES,
    LARGE_WORLD,
    caption,
    describe,
    locate,
    questions,
    sample_scenes,
    scene_schema,
)
from qwenvl_kit.demo.training.tokenizer import (
    N_NUMBERS,
    SPECIALS,
    build_tokenizer,
    number_ids,
    vocabulary_size,
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer()


def test_the_vocabulary_is_always_the_same(tokenizer: PreTrainedTokenizerBase) -> None:
    assert build_tokenizer().get_vocab() == tokenizer.get_vocab()
    assert vocabulary_size(tokenizer) == 1408


TEXTS = ["", "naïve café 🙂", "图像理解\n\t", '[{"bbox_2d": [12, 3, 45, 6], "label": "red circle"}]']


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_the_round_trip(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_specials_are_single_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    for special in SPECIALS:
        assert len(tokenizer(special)["input_ids"]) == 1


def test_sentences_of_the_large_world_are_short(tokenizer: PreTrainedTokenizerBase) -> None:
    rng = np.random.default_rng(0)
    for scene in sample_scenes(40, world=LARGE_WORLD):
        for language, n_head, n_each in (("zh", 5, 5), ("en", 7, 8)):
            n_tokens = len(tokenizer(caption(scene, language))["input_ids"])
            assert n_tokens <= n_head + n_each * len(scene.things)
        for language in LANGUAGES:
            answers = [question.answer for question in questions(scene, rng, language)]
            assert max(len(tokenizer(answer)["input_ids"]) for answer in answers) <= 6


def test_numbers_are_tokens_of_answers_and_no_text_is_split_into_them(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = number_ids(tokenizer)
    assert len(set(ids)) == N_NUMBERS
    assert tokenizer.decode([ids[7], ids[42], ids[199]]) == "742199"
    assert tokenizer("42")["input_ids"] == [ids[4], ids[2]]


def test_json_of_the_large_world_has_one_token_for_each_word(tokenizer: PreTrainedTokenizerBase) -> None:
    for scene in sample_scenes(20, world=LARGE_WORLD):
        listing = describe(scene, scene_schema())
        assert len(tokenizer(listing.prompt)["input_ids"]) <= 51
        assert len(tokenizer(listing.answer)["input_ids"]) <= 18 + 27 * len(scene.things)
        for language in LANGUAGES:
            prompt = locate(scene, "detect", language, height=112, width=112).prompt
            assert len(tokenizer(prompt)["input_ids"]) <= {"zh": 4, "en": 15}[language]
