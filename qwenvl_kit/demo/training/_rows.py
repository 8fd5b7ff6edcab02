"""Scenes and their pictures enter, rows of words leave: one for each picture, shared by its captions and questions.

A row is the prefix, the picture, then one segment for each prompt with its answer; a segment sees the prefix, the
picture and itself, and its positions start where the picture ends, so each reads as if it stood there alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from qwenvl_kit.demo._language import CAPTION_PROMPTS, LANGUAGES, Language, caption_parts
from qwenvl_kit.demo._questions import Asker, Question
from qwenvl_kit.demo._world import Scene, World

from ._pictures import PICTURE_TOKENS, PictureBatch

#: Tokens in a row.
ROW_TOKENS = 240

CAPTION_WEIGHT = 1.0
_QUESTION_WEIGHT = 1.5
_OTHER_PHRASING = 0.25
_ONE_CAPTION = 0.5  # such rows have room for more questions

_PREFIX = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
_TURN = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, kw_only=True)
class RowBatch:
    """Packed rows of words around the pictures.

    Attributes
    ----------
    tokens
        (B, T), with anything where the picture stands.
    positions
        (3, B, T).
    allowed
        bool (B, T, T).
    where
        (K, 2) row and place of everything to be predicted.
    targets, weights
        (K,) the token to be predicted and how much it counts.
    picture_start
        Where the picture begins in every row.
    focus
        bool (K, M) merged tokens of the picture that the answer is read from; a row without any is not guided.
    """

    tokens: Tensor
    positions: Tensor
    allowed: Tensor
    where: Tensor
    targets: Tensor
    weights: Tensor
    focus: Tensor
    picture_start: int


@dataclass(frozen=True)
class _Answer:
    """A prompt, the sentences of its answer, and the objects that each sentence is about."""

    prompt: str
    parts: tuple[str, ...]
    about: tuple[tuple[int, ...], ...]
    weight: float


class RowPacker:
    """Packs rows of words in the vocabulary of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, world: World) -> None:
        self._tokenizer = tokenizer
        self._world = world
        self._prefix = self._ids(_PREFIX)
        self._after_picture = self._ids("<|vision_end|>")
        self._turn = self._ids(_TURN)
        self._end = self._ids("<|im_end|>")
        self.picture_start = len(self._prefix)

    def pack(self, scenes: list[Scene], pictures: PictureBatch, rng: np.random.Generator) -> RowBatch:
        """Write both captions and as many questions as a row holds."""
        shape = (len(scenes), ROW_TOKENS)
        tokens = np.zeros(shape, dtype=np.int64)
        positions = np.zeros((3, *shape), dtype=np.int64)
        segments = np.full(shape, -1, dtype=np.int64)
        predictions: list[tuple[int, int, int, float]] = []
        focus: list[NDArray[np.bool_]] = []
        picture = slice(self.picture_start, self.picture_start + PICTURE_TOKENS)
        for row, scene in enumerate(scenes):
            grid, owners = pictures.grids[row], pictures.owners[row].numpy()
            after = self._write_head(tokens[row], positions[:, row], segments[row], grid)
            cursor = picture.stop + 1
            for segment, answer in enumerate(self._answers(scene, rng), start=1):
                prompt = [*self._ids(answer.prompt), *self._turn]
                ids, about = self._answer_ids(answer)
                stop = cursor + len(prompt) + len(ids) - 1  # the end is predicted and never read
                if stop > ROW_TOKENS:
                    continue
                tokens[row, cursor:stop] = [*prompt, *ids[:-1]]
                positions[:, row, cursor:stop] = after + np.arange(stop - cursor)
                segments[row, cursor:stop] = segment
                for place, (target, things) in enumerate(zip(ids, about, strict=True)):
                    predictions.append((row, cursor + len(prompt) - 1 + place, target, answer.weight))
                    focus.append(np.isin(owners, things))
                cursor = stop
        seen = segments[:, None, :] == segments[:, :, None]
        allowed = (seen | (segments[:, None, :] == 0)) & np.tri(ROW_TOKENS, dtype=bool)
        return RowBatch(
            tokens=torch.from_numpy(tokens),
            positions=torch.from_numpy(positions),
            allowed=torch.from_numpy(allowed),
            where=torch.tensor([(row, place) for row, place, _, _ in predictions]),
            targets=torch.tensor([target for _, _, target, _ in predictions]),
            weights=torch.tensor([weight for _, _, _, weight in predictions]),
            focus=torch.from_numpy(np.stack(focus)),
            picture_start=self.picture_start,
        )

    def _write_head(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        segments: NDArray[np.int64],
        grid: tuple[int, int],
    ) -> int:
        """Write prefix, picture and its end; give the position that follows."""
        start, n_tokens = self.picture_start, grid[0] * grid[1]
        tokens[:start] = self._prefix
        positions[:, :start] = np.arange(start)
        token_rows, token_columns = np.divmod(np.arange(n_tokens), grid[1])
        positions[:, start : start + n_tokens] = start + np.stack([0 * token_rows, token_rows, token_columns])
        end = start + PICTURE_TOKENS
        tokens[end] = self._after_picture[0]
        positions[:, end] = start + max(grid)
        segments[: start + n_tokens] = 0
        segments[start + n_tokens : end] = -2
        segments[end] = 0
        return start + max(grid) + 1

    def _answers(self, scene: Scene, rng: np.random.Generator) -> list[_Answer]:
        answers = []
        languages = rng.permutation(LANGUAGES)
        for language in languages[: 1 if rng.random() < _ONE_CAPTION else 2]:
            prompts = CAPTION_PROMPTS[language]
            chosen = int(rng.integers(1, len(prompts))) if rng.random() < _OTHER_PHRASING else 0
            about = ((), *((row,) for row in range(len(scene.things))))
            answers.append(_Answer(prompts[chosen], tuple(caption_parts(scene, language)), about, CAPTION_WEIGHT))
        asked = [question for language in LANGUAGES for question in self._questions(scene, rng, language)]
        order = rng.permutation(len(asked))
        answers += [_Answer(asked[i].prompt, (asked[i].answer,), (asked[i].about,), _QUESTION_WEIGHT) for i in order]
        return answers

    def _questions(self, scene: Scene, rng: np.random.Generator, language: Language) -> list[Question]:
        asker = Asker(scene, rng, language, world=self._world, vary=bool(rng.random() < _OTHER_PHRASING))
        easy = (asker.count, asker.background, asker.colour, asker.what)
        asked = [  # those that look something up by its colour and shape are the hard ones
            *(asker.is_there(truth=True), asker.is_there(truth=True)),
            *(asker.is_there(truth=False), asker.is_there(truth=False, hard=bool(rng.random() < 0.5))),
            *(asker.shape(), asker.where(), asker.where()),
            easy[int(rng.integers(len(easy)))](),
        ]
        return [question for question in asked if question is not None]

    def _answer_ids(self, answer: _Answer) -> tuple[list[int], list[tuple[int, ...]]]:
        """Give the answer's tokens with the end, and the objects that each of them is read from."""
        encoded = self._tokenizer("".join(answer.parts), return_offsets_mapping=True)
        ends = np.cumsum([len(part) for part in answer.parts])
        parts = [int(np.searchsorted(ends, stop)) for _, stop in encoded["offset_mapping"]]
        return [*encoded["input_ids"], *self._end], [*(answer.about[part] for part in parts), ()]

    @cache  # noqa: B019 - one packer lives as long as the training
    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids
