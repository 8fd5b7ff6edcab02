"""Pack captions and questions of an image into one row of tokens.

A row is the prefix, the image, then one segment per prompt with its answer. A segment attends to the prefix, the image
and itself. Its positions start where the image ends, so each segment is computed as if it stood alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from qwenvl_kit.demo.scenes import (
    CAPTION_PROMPTS,
    CELLS,
    LANGUAGES,
    Asker,
    Language,
    Listing,
    Locate,
    Question,
    Scene,
    World,
    caption_parts,
    describe,
    locate,
    sample_names,
    sample_schema,
    scene_schema,
    word,
)

from .images import IMAGE_TOKENS, TOKEN_SIDE, ImageBatch
from .tokenizer import number_ids

#: Tokens in a row.
ROW_TOKENS = 320

#: Forms of answers, in the order of their numbers in `RowBatch.forms`.
FORMS = ("caption", "question", "schema", "place")
_WEIGHTS = {"caption": 1.5, "question": 2.5, "schema": 0.5, "place": 0.5}  # an array's signs are soon known
_VALUE_WEIGHT = 2.0  # of coordinates and names in JSON
_END_WEIGHT = 4.0  # of what decides whether an array of places has one more object
_ENDS = ("[\n", "[]\n", '"},\n', '"}\n', '[{"', "[]", '"},', '"}]')
_OTHER_PHRASING = 0.25
_N_CAPTIONS = (0.45, 0.45, 0.1)  # shares of rows with none, one and two
_SCHEMA = 0.55  # of rows
_WHOLE_SCHEMA = 0.6  # of schemas
_N_NAMES = (0.2, 0.6, 0.2)  # shares of prompts for all objects, for one name and for two
_SEVERAL = 0.4  # of names fit several objects, where the scene has such: else these were rare
_WHOLE_NAME = 0.35  # of names hold colour and shape: the others are hard
_N_MORE = 2  # most further prompts of a row for the place of one name
_ONE_MORE = 0.8  # of these are asked
_BARE_ARRAY = 0.3

_PREFIX = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
_TURN = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, kw_only=True)
class RowBatch:
    """Packed rows of tokens around the images.

    Attributes
    ----------
    tokens
        (B, T); values at the places of the image have no meaning.
    positions
        (3, B, T).
    allowed
        bool (B, T, T).
    where
        (K, 2) row and place of each prediction.
    targets, weights, forms
        (K,) the token to predict, its weight, and the index of its form in `FORMS`.
    beside
        (K, 2) the tokens of the numbers below and above; the target itself if it is no coordinate.
    numbers
        (N,) the token of each number from 0 on.
    image_start
        Place of the first image token in every row.
    focus
        bool (K, M) merged tokens that decide the answer; a row without any is not guided.
    """

    tokens: Tensor
    positions: Tensor
    allowed: Tensor
    where: Tensor
    targets: Tensor
    weights: Tensor
    forms: Tensor
    beside: Tensor
    numbers: Tensor
    focus: Tensor
    image_start: int


@dataclass(frozen=True)
class _Answer:
    """A prompt, the sentences of its answer, and the objects that each sentence is about."""

    prompt: str
    parts: tuple[str, ...]
    about: tuple[tuple[int, ...], ...]
    form: str


class RowPacker:
    """Pack rows with the vocabulary of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, world: World) -> None:
        self._tokenizer = tokenizer
        self._world = world
        self._prefix = self._ids(_PREFIX)
        self._after_image = self._ids("<|vision_end|>")
        self._turn = self._ids(_TURN)
        self._end = self._ids("<|im_end|>")
        self.image_start = len(self._prefix)
        self._numbers = number_ids(tokenizer)
        self._names = {self._ids(name)[0] for name in _names(world)}
        self._ends = {self._ids(end)[0] for end in _ENDS}
        self._values = {token: value for value, token in enumerate(self._numbers)}

    def pack(self, scenes: list[Scene], images: ImageBatch, rng: np.random.Generator) -> RowBatch:
        """Return one row per scene: at most two captions, JSON, and as many questions as fit."""
        shape = (len(scenes), ROW_TOKENS)
        tokens = np.zeros(shape, dtype=np.int64)
        positions = np.zeros((3, *shape), dtype=np.int64)
        segments = np.full(shape, -1, dtype=np.int64)
        predictions: list[tuple[int, int, int, int]] = []
        focus: list[NDArray[np.bool_]] = []
        image = slice(self.image_start, self.image_start + IMAGE_TOKENS)
        for row, scene in enumerate(scenes):
            grid, owners = images.grids[row], images.owners[row].numpy()
            after = self._write_head(tokens[row], positions[:, row], segments[row], grid)
            cursor = image.stop + 1
            for segment, answer in enumerate(self._answers(scene, grid, rng), start=1):
                prompt = [*self._ids(answer.prompt), *self._turn]
                ids, about = self._answer_ids(answer)
                stop = cursor + len(prompt) + len(ids) - 1  # the end token is predicted, never an input
                if stop > ROW_TOKENS:
                    continue
                tokens[row, cursor:stop] = [*prompt, *ids[:-1]]
                positions[:, row, cursor:stop] = after + np.arange(stop - cursor)
                segments[row, cursor:stop] = segment
                owned = {things: np.isin(owners, things) for things in set(about)}
                for place, (target, things) in enumerate(zip(ids, about, strict=True)):
                    predictions.append((row, cursor + len(prompt) - 1 + place, target, FORMS.index(answer.form)))
                    focus.append(owned[things])
                cursor = stop
        seen = segments[:, None, :] == segments[:, :, None]
        allowed = (seen | (segments[:, None, :] == 0)) & np.tri(ROW_TOKENS, dtype=bool)
        targets = [target for _, _, target, _ in predictions]
        forms = [form for _, _, _, form in predictions]
        beside = [self._beside(target, FORMS[form]) for target, form in zip(targets, forms, strict=True)]
        weights = [self._weight(target, FORMS[form]) for target, form in zip(targets, forms, strict=True)]
        return RowBatch(
            tokens=torch.from_numpy(tokens),
            positions=torch.from_numpy(positions),
            allowed=torch.from_numpy(allowed),
            where=torch.tensor([(row, place) for row, place, _, _ in predictions]),
            targets=torch.tensor(targets),
            weights=torch.tensor(weights),
            forms=torch.tensor(forms),
            beside=torch.tensor(beside),
            numbers=torch.tensor(self._numbers),
            focus=torch.from_numpy(np.stack(focus)),
            image_start=self.image_start,
        )

    def _write_head(
        self,
        tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
        segments: NDArray[np.int64],
        grid: tuple[int, int],
    ) -> int:
        """Write prefix, image and end of image; return the next position."""
        start, n_tokens = self.image_start, grid[0] * grid[1]
        tokens[:start] = self._prefix
        positions[:, :start] = np.arange(start)
        token_rows, token_columns = np.divmod(np.arange(n_tokens), grid[1])
        positions[:, start : start + n_tokens] = start + np.stack([0 * token_rows, token_rows, token_columns])
        end = start + IMAGE_TOKENS
        tokens[end] = self._after_image[0]
        positions[:, end] = start + max(grid)
        segments[: start + n_tokens] = 0
        segments[start + n_tokens : end] = -2
        segments[end] = 0
        return start + max(grid) + 1

    def _answers(self, scene: Scene, grid: tuple[int, int], rng: np.random.Generator) -> list[_Answer]:
        """Return more prompts than fit into a row, the most wanted first."""
        numbers = [self._asker(scene, rng, language).number() for language in rng.permutation(LANGUAGES)]
        answers = [_asked(number) for number in numbers if number]
        if rng.random() < _SCHEMA:
            answers.append(_listed(self._described(scene, rng), "schema"))
        answers.append(
            _listed(self._located(scene, grid, rng, n_names=int(rng.choice(len(_N_NAMES), p=_N_NAMES))), "place")
        )
        languages = rng.permutation(LANGUAGES)
        for language in languages[: int(rng.choice(len(_N_CAPTIONS), p=_N_CAPTIONS))]:
            prompts = CAPTION_PROMPTS[language]
            chosen = int(rng.integers(1, len(prompts))) if rng.random() < _OTHER_PHRASING else 0
            about = ((), *((row,) for row in range(len(scene.things))))
            answers.append(_Answer(prompts[chosen], tuple(caption_parts(scene, language)), about, "caption"))
        n_more = int(rng.binomial(_N_MORE, _ONE_MORE))
        answers += [_listed(self._located(scene, grid, rng, n_names=1), "place") for _ in range(n_more)]
        asked = [question for language in LANGUAGES for question in self._questions(scene, rng, language)]
        order = rng.permutation(len(asked))
        return [*answers, *(_asked(asked[i]) for i in order)]

    def _described(self, scene: Scene, rng: np.random.Generator) -> Listing:
        if rng.random() >= _WHOLE_SCHEMA:
            return describe(scene, sample_schema(scene, rng, world=self._world))
        names = ("shape", "colour", "place") if rng.random() < 0.5 else ()
        return describe(scene, scene_schema(*names))

    def _located(self, scene: Scene, grid: tuple[int, int], rng: np.random.Generator, *, n_names: int) -> Listing:
        what: Locate = "detect" if rng.random() < 0.65 else "point"
        return locate(
            scene,
            what,
            LANGUAGES[int(rng.integers(len(LANGUAGES)))],
            height=grid[0] * TOKEN_SIDE,
            width=grid[1] * TOKEN_SIDE,
            names=sample_names(scene, rng, n=n_names, several=_SEVERAL, whole=_WHOLE_NAME, world=self._world),
            is_fenced=bool(rng.random() >= _BARE_ARRAY),
        )

    def _questions(self, scene: Scene, rng: np.random.Generator, language: Language) -> list[Question]:
        asker = self._asker(scene, rng, language)
        easy = (asker.count, asker.background, asker.colour, asker.what)
        asked = [  # lookups by colour and shape are hard
            *(asker.is_there(truth=True), asker.is_there(truth=True)),
            *(asker.is_there(truth=False), asker.is_there(truth=False, hard=bool(rng.random() < 0.5))),
            *(asker.shape(), asker.where(), asker.where()),
            easy[int(rng.integers(len(easy)))](),
        ]
        return [question for question in asked if question is not None]

    def _asker(self, scene: Scene, rng: np.random.Generator, language: Language) -> Asker:
        return Asker(scene, rng, language, world=self._world, vary=bool(rng.random() < _OTHER_PHRASING))

    def _answer_ids(self, answer: _Answer) -> tuple[list[int], list[tuple[int, ...]]]:
        """Return the tokens of the answer with the end token, and the objects that decide each of them."""
        text = "".join(answer.parts)
        encoded = self._tokenizer(text, return_offsets_mapping=True)
        ends = np.cumsum([len(part) for part in answer.parts])
        ids: list[int] = []
        about: list[tuple[int, ...]] = []
        for token, (start, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            is_digit = answer.form == "place" and text[start:stop].isdecimal()
            if is_digit and start > 0 and text[start - 1].isdecimal():  # a coordinate is one token
                ids[-1] = self._numbers[10 * self._values[ids[-1]] + self._values[token]]
                continue
            ids.append(token)
            about.append(answer.about[int(np.searchsorted(ends, stop))])
        return [*ids, *self._end], [*about, ()]

    def _weight(self, token: int, form: str) -> float:
        if form == "place" and token in self._ends:
            return _END_WEIGHT
        is_value = form in ("schema", "place") and (token in self._names or self._values.get(token, 0) >= 10)
        return _VALUE_WEIGHT if is_value else _WEIGHTS[form]

    def _beside(self, token: int, form: str) -> tuple[int, int]:
        """Return the tokens of the numbers below and above a coordinate, or the token twice if it is none."""
        value = self._values.get(token, 0)
        if form != "place" or value < 10:  # a single digit may belong to "bbox_2d"
            return token, token
        return self._numbers[value - 1], self._numbers[min(value + 1, len(self._numbers) - 1)]

    @cache  # noqa: B019 - one packer lives as long as the training
    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids


def _names(world: World) -> set[str]:
    """Return the words of all values in JSON; the second word of a place has a space before it."""
    english = {*world.shapes, *world.colours, *world.backgrounds, *world.sizes}
    places = {part for cell in CELLS for part in (cell.split()[0], *(f" {more}" for more in cell.split()[1:]))}
    chinese = {word(name, "zh") for name in english}
    return english | chinese | places | {f" {shape}" for shape in world.shapes}


def _asked(question: Question) -> _Answer:
    return _Answer(question.prompt, (question.answer,), (question.about,), "question")


def _listed(listing: Listing, form: str) -> _Answer:
    return _Answer(listing.prompt, listing.parts, listing.about, form)
