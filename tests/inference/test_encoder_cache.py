"""Images are encoded once while memory for them lasts."""

from __future__ import annotations

import pytest
import torch
from helpers.fake_model_runner import TOKENIZATION, HashModelRunner, requests_of

from qwenvl_kit.inference.encoder_cache import EncoderCache
from qwenvl_kit.inference.sequence import Sequence
from qwenvl_kit.types import LoadedImage

patchify = TOKENIZATION.processor.patchify


def sequences_of(*levels: int) -> list[Sequence]:
    return [TOKENIZATION.processor.encode(request) for request in requests_of([(level, 0, 1) for level in levels])]


@pytest.mark.parametrize(("max_bytes", "max_images"), [(2 * 16, 99), (9 * 16, 2)])  # 16 bytes: four tokens
def test_images_beyond_the_memory_are_encoded_again(max_bytes: int, max_images: int) -> None:
    model_runner = HashModelRunner()
    encoder_cache = EncoderCache(model_runner, patchify, max_bytes=max_bytes, max_images=max_images)

    features = [encoder_cache.encode([sequence])[0] for sequence in sequences_of(1, 2, 3, 1, 3)]

    assert [level_of(each) for each in features] == [1, 2, 3, 1, 3]
    assert model_runner.n_encoded == 4


def test_images_decoded_in_another_way_are_encoded_again() -> None:
    model_runner = HashModelRunner()
    encoder_cache = EncoderCache(model_runner, patchify)
    for decode, n_encoded in [("exact", 2), ("exact", 2), ("draft", 4)]:
        encoder_cache.start_run(decode)
        encoder_cache.encode(sequences_of(1, 2, 1))
        assert model_runner.n_encoded == n_encoded


def test_an_image_that_cannot_be_cut_is_returned_as_the_exception_of_its_sequences() -> None:
    def refuse_two(image: LoadedImage) -> torch.Tensor:
        if image.digest == "2":
            raise ZeroDivisionError
        return patchify(image)

    features = EncoderCache(HashModelRunner(), refuse_two).encode(sequences_of(1, 2, 3, 2))

    assert [level_of(each) for each in features] == [1, None, 3, None]
    assert isinstance(features[1], ZeroDivisionError)


def level_of(features: torch.Tensor | Exception) -> int | None:
    return None if isinstance(features, Exception) else int(features[0, 0])
