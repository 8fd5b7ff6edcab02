"""A model runner whose every token depends on all tokens before it, in their slot and position, and its requests."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from qwenvl_kit import Config
from qwenvl_kit.checkpoints.capabilities import Device
from qwenvl_kit.checkpoints.resolve import CheckpointDefaults, ResolvedConfig, resolve
from qwenvl_kit.inference.model_runner import PrefillChunk
from qwenvl_kit.inference.processor import Tokenization
from qwenvl_kit.inference.sequence import Sequence
from qwenvl_kit.types import LoadedImage, PatchGeometry, Request

VOCABULARY, EOS, IMAGE = 50, 1, 2


class HashModelRunner:
    """A model runner whose next token is a hash of all that its slot holds; memory runs out where it is told so."""

    device = torch.device("cpu")

    def __init__(self, *, n_rows_that_fit: int = 99, seed: int = 0, sometimes: float = 0.0) -> None:
        self.slots: list[list[Any]] = []
        self.capacity = 0
        self.n_encoded = self.n_prefilled = 0
        self.sizes: list[int] = []
        self._n_fit, self._random, self._sometimes = n_rows_that_fit, random.Random(seed), sometimes

    def encode_images(self, pixel_values: torch.Tensor, grid: torch.Tensor) -> list[torch.Tensor]:
        self.n_encoded += len(grid)
        return [one[:4] for one in pixel_values.split(grid.prod(dim=1).tolist())]  # 16 patches, 4 visual tokens

    def resize_cache(self, n_slots: int, capacity: int) -> None:
        self.capacity = capacity
        self.slots = [*self.slots[:n_slots], *[[] for _ in range(n_slots - len(self.slots))]]
        self.slots = [slot[:capacity] for slot in self.slots]

    def prefill(self, chunks: Seq[PrefillChunk]) -> torch.Tensor:
        self._use_memory(len(self.slots), len(chunks))
        logits = []
        for chunk in chunks:
            self.n_prefilled += len(chunk.ids)
            seen = iter(() if chunk.image_features is None else chunk.image_features[:, 0].tolist())
            tokens = [next(seen, token) if token == IMAGE else token for token in chunk.ids.tolist()]
            assert next(seen, None) is None
            held = self.slots[chunk.slot][: chunk.cached_len]
            assert len(held) == chunk.cached_len
            self.slots[chunk.slot] = [*held, *zip(tokens, map(tuple, chunk.positions.T.tolist()), strict=True)]
            assert len(self.slots[chunk.slot]) <= self.capacity
            logits.append(_logits(self.slots[chunk.slot]))
        return torch.stack(logits)

    def decode(self, ids: torch.Tensor, positions: torch.Tensor, lengths: torch.Tensor, max_len: int) -> torch.Tensor:
        assert max_len == int(lengths.max()) + 1
        self.sizes.append(len(ids))
        self._use_memory(len(ids))
        rows = enumerate(zip(ids.tolist(), positions.tolist(), lengths.tolist(), strict=True))
        for slot, (token, position, length) in rows:
            assert length < self.capacity
            self.slots[slot] = [*self.slots[slot][:length], (token, (position,) * 3)]
            assert len(self.slots[slot]) == length + 1
        return torch.stack([_logits(self.slots[slot]) for slot in range(len(ids))])

    def score(self, slot: int, cached_len: int, position: int, continuations: Seq[Seq[int]]) -> list[torch.Tensor]:
        assert len(self.slots[slot]) >= cached_len
        scores = []
        for ids in continuations:
            held = list(self.slots[slot][:cached_len])
            found = []
            for place, (token, following) in enumerate(itertools.pairwise(ids)):
                held.append((token, (position + place,) * 3))
                found.append(_logits(held).log_softmax(0)[following])
            scores.append(torch.stack(found))
        return scores

    def copy_slot(self, source: int, target: int, length: int) -> None:
        self.slots[target] = list(self.slots[source][:length])

    def zero_slot(self, slot: int) -> None:
        self.slots[slot] = []

    def close(self) -> None:
        self.slots = []

    def _use_memory(self, n_rows: int, n_prefilled: int = 2) -> None:
        # A row that is read by itself has nothing left that could be given up: it would rightly be an error.
        is_unlucky = n_rows > 1 and n_prefilled > 1 and self._random.random() < self._sometimes
        if n_rows > self._n_fit or is_unlucky:
            raise torch.OutOfMemoryError("made up")


def _logits(held: Seq[Any]) -> torch.Tensor:
    draw = random.Random(str([(round(float(token), 3), position) for token, position in held]))
    logits = torch.full((VOCABULARY,), -1.0)
    logits[EOS if draw.random() < 0.05 else draw.randrange(3, VOCABULARY)] = 1.0
    return logits


class PlainProcessor:
    """Prompts of numbers: 40 tokens, four of each image, then the prompt's own."""

    def encode(self, request: Request) -> Sequence:
        ids = [*range(3, 43), *[IMAGE] * 4 * len(request.images), *map(int, request.prompt.split())]
        sequence = Sequence(request, ids, torch.tensor([[1, 4, 4]] * len(request.images)), image_id=IMAGE, merge=2)
        sequence.label_ids = tuple(tuple(map(int, label.split())) for label in request.labels)
        return sequence

    def patchify(self, image: LoadedImage) -> torch.Tensor:
        return torch.full((16, 1), float(image.pixels[0, 0, 0]))


TOKENIZATION = Tokenization(PlainProcessor(), lambda ids: " ".join(map(str, ids)), (EOS,))  # type: ignore[arg-type]


@dataclass
class ListQueue:
    """Gives requests, and now and then none."""

    requests: list[Request]
    seed: int = 0
    n_blocked: int = 0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def get(self, n: int, *, block: bool) -> list[Request] | None:
        assert n >= 1
        self.n_blocked += block
        if not self.requests:
            return None
        if not block and self._random.random() < 0.4:
            return []
        some = self._random.randint(1, n)
        taken, self.requests = self.requests[:some], self.requests[some:]
        return taken


def requests_of(rows: Seq[tuple[int, int, int]]) -> list[Request]:
    """Of (gray level, question, longest answer) each."""
    return [
        Request(
            row,
            (LoadedImage(np.full((56, 56, 3), level, np.uint8), str(level), (56, 56)),),
            " ".join(map(str, range(10, 11 + question))),
            None,
            row * 7,
            n_most,
        )
        for row, (level, question, n_most) in enumerate(rows)
    ]


def resolved_of(**options: Any) -> ResolvedConfig:
    return resolve(Config(**options), Device("cpu"), CheckpointDefaults("made up", "", PatchGeometry()))
