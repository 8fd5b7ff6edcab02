"""Give a new vocabulary the embeddings of the one that a model was trained with, token text by token text."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_LONGEST_WAVE = 400.0
_SHORTEST_WAVE = 4.0


def carry_embeddings(
    former: Tensor, former_tokenizer: PreTrainedTokenizerBase, drawn: Tensor, tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """Return the embeddings of a vocabulary.

    A token of the former vocabulary keeps its row. A new one begins near the same word with a space before it, else
    near the mean of its former pieces. Numbers and what has no text keep the drawn row.

    Parameters
    ----------
    former
        (V, D) trained rows.
    former_tokenizer
        Their tokens.
    drawn
        (W, D) rows of the new vocabulary, as initialised.
    tokenizer
        Its tokens.
    """
    known = former_tokenizer.get_vocab()
    rows = drawn.clone()
    noise = former.float().std()
    for token, at in tokenizer.get_vocab().items():
        text = tokenizer.convert_tokens_to_string([token])
        if text.isdecimal():
            continue
        if token in known:
            rows[at] = former[known[token]].float()
            continue
        pieces = [known[other] for other in (f"Ġ{token}", token.removeprefix("Ġ")) if other in known][:1]
        pieces = pieces or former_tokenizer(text)["input_ids"]
        if pieces:
            rows[at] = 0.6 * former[pieces].float().mean(dim=0) + 0.6 * noise * torch.randn(rows.shape[1])
    return rows


def number_codes(rows: Tensor, numbers: list[int]) -> None:
    """Write embeddings of numbers in place: waves of many lengths, so that near numbers are alike."""
    width = rows.shape[1]
    n_waves = width // 4
    lengths = torch.logspace(math.log10(_SHORTEST_WAVE), math.log10(_LONGEST_WAVE), n_waves)
    angles = 2 * math.pi * torch.arange(len(numbers))[:, None] / lengths  # (N, waves)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    turn = torch.linalg.qr(torch.randn(width, 2 * n_waves)).Q  # (D, 2 waves)
    rows[numbers] = waves @ turn.T * (_NUMBER_NORM / n_waves**0.5)


_NUMBER_NORM = 1.9  # of trained rows
