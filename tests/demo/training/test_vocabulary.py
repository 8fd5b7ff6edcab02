"""A model keeps what it knows of words when its vocabulary grows."""

from __future__ import annotations

import torch
from transformers import AutoTokenizer

from qwenvl_kit.demo import model_dir
from qwenvl_kit.demo.training.tokenizer import build_tokenizer, number_ids
from qwenvl_kit.demo.training.vocabulary import carry_embeddings, number_codes


def test_known_tokens_keep_their_rows_and_numbers_the_drawn_ones() -> None:
    former_tokenizer, tokenizer = AutoTokenizer.from_pretrained(model_dir()), build_tokenizer()
    former = torch.randn(len(former_tokenizer), 8)
    drawn = torch.randn(len(tokenizer), 8)
    rows = carry_embeddings(former, former_tokenizer, drawn, tokenizer)
    for token in ("Ġred", "<|im_end|>", "<|image_pad|>"):
        there, here = (one.convert_tokens_to_ids(token) for one in (former_tokenizer, tokenizer))
        assert torch.equal(rows[here], former[there])
    assert torch.equal(rows[number_ids(tokenizer)], drawn[number_ids(tokenizer)])


def test_near_numbers_have_like_codes() -> None:
    rows = torch.zeros(200, 32)
    number_codes(rows, list(range(200)))
    alike = torch.cosine_similarity(rows[:, None], rows[None, :], dim=-1)
    assert torch.allclose(alike.diagonal(), torch.ones(200))
    assert alike[50, 51] > alike[50, 53] > alike[50, 60]
    assert (alike - torch.eye(200)).max() < 0.999
