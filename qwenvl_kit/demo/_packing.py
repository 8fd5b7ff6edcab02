"""Scenes enter, tensors leave: one padded row for each picture, in which all its captions and questions share it.

A row is the prefix, the picture, then one segment for each prompt with its answer; a segment sees the prefix, the
picture and itself, and its positions start where the picture ends, so each reads as if it stood there alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from ._checkpoint import MAX_PIXELS, MIN_PIXELS
from ._drawing import boxes, draw
from ._language import CAPTION_PROMPTS, LANGUAGES, Asker, Language, Question, caption_parts
from ._world import LARGE_WORLD, Scene, World

#: Tokens in a row, and room for the merged tokens of a picture in it.
ROW_TOKENS = 240
PICTURE_TOKENS = 18

SHAPES, COLOURS, SIZES = (LARGE_WORLD.shapes, LARGE_WORLD.colours, LARGE_WORLD.sizes)
IGNORED = -100

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
_PATCH = 14
_TOKEN_SIDE = 2 * _PATCH
_WINDOW_TOKENS = 2
_QUESTION_WEIGHT = 1.5
CAPTION_WEIGHT = 1.0
_OTHER_PHRASING = 0.25
_ONE_CAPTION = 0.5  # such rows have room for more questions
_OWNED_SHARE = 0.25

_PREFIX = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
_TURN = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, kw_only=True)
class PictureBatch:
    """Pictures of several grids, padded.

    Attributes
    ----------
    patches, places, windows
        What `run_vision` takes.
    grids
        Merged rows and columns of each picture.
    owners
        (B, M) which object of the scene a merged token belongs to, -1 for none and -100 for padding.
    labels
        (B, M) a name's index for shape, colour, size and background, -100 where it does not apply.
    """

    patches: Tensor
    places: Tensor
    windows: Tensor
    grids: list[tuple[int, int]]
    owners: Tensor
    labels: dict[str, Tensor]


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


@dataclass(frozen=True)
class _Answer:
    """A prompt, the sentences of its answer, and the objects that each sentence is about."""

    prompt: str
    parts: tuple[str, ...]
    about: tuple[tuple[int, ...], ...]
    weight: float


def pack_pictures(scenes: list[Scene]) -> PictureBatch:
    """Draw, resize as the processor does, and cut into patches."""
    n_patches = PICTURE_TOKENS * 4
    patches = np.zeros((len(scenes), n_patches, 3 * _PATCH * _PATCH), dtype=np.float32)
    places = np.zeros((len(scenes), n_patches, 2), dtype=np.int64)
    windows = np.full((len(scenes), n_patches), -1, dtype=np.int64)
    owners = np.full((len(scenes), PICTURE_TOKENS), IGNORED, dtype=np.int64)
    grids = []
    for row, scene in enumerate(scenes):
        pixels = _resized(draw(scene))
        grid = (pixels.shape[0] // _TOKEN_SIDE, pixels.shape[1] // _TOKEN_SIDE)
        n_tokens = grid[0] * grid[1]
        patches[row, : 4 * n_tokens] = _patches(pixels)
        places[row, : 4 * n_tokens], windows[row, : 4 * n_tokens] = _places(grid)
        owners[row, :n_tokens] = _owners(scene, grid)
        grids.append(grid)
    return PictureBatch(
        patches=torch.from_numpy(patches),
        places=torch.from_numpy(places),
        windows=torch.from_numpy(windows),
        grids=grids,
        owners=torch.from_numpy(owners),
        labels={name: torch.from_numpy(label) for name, label in _labels(scenes, owners).items()},
    )


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


def _resized(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = smart_resize(*pixels.shape[:2], min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def _patches(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Cut (H, W, 3) into (N, 588), the four patches of a merged token after one another."""
    rows, columns = pixels.shape[0] // _TOKEN_SIDE, pixels.shape[1] // _TOKEN_SIDE
    scaled: NDArray[np.float32] = (pixels.astype(np.float32) / np.float32(255) - _MEAN) / _STD
    cut = scaled.reshape(rows, 2, _PATCH, columns, 2, _PATCH, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    return cut.reshape(rows * columns * 4, -1)


@cache
def _places(grid: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give row and column of every patch, and the window it attends to in windowed blocks."""
    rows, columns = grid
    token_row, token_column, inner_row, inner_column = np.unravel_index(
        np.arange(rows * columns * 4), (rows, columns, 2, 2)
    )
    places = np.stack([2 * token_row + inner_row, 2 * token_column + inner_column], axis=1)
    return places, token_row // _WINDOW_TOKENS * columns + token_column // _WINDOW_TOKENS


def _owners(scene: Scene, grid: tuple[int, int]) -> NDArray[np.int64]:
    """Tell which object each merged token belongs to: the one that covers most of it."""
    overlaps = np.stack([_overlap(box, grid) for box in boxes(scene, height=grid[0], width=grid[1])])  # (things, M)
    areas = np.array([(box[2] - box[0]) * (box[3] - box[1]) for box in boxes(scene, height=grid[0], width=grid[1])])
    enough = overlaps.max(axis=0) >= _OWNED_SHARE * np.minimum(areas[overlaps.argmax(axis=0)], 1.0)
    owners = np.where(enough, overlaps.argmax(axis=0), -1)
    owners[overlaps.argmax(axis=1)] = np.arange(len(scene.things))  # each object owns its best token at least
    return owners


def _overlap(box: tuple[float, float, float, float], grid: tuple[int, int]) -> NDArray[np.float64]:
    left, top, right, bottom = box
    rows, columns = np.arange(grid[0]), np.arange(grid[1])
    high = np.clip(np.minimum(bottom, rows + 1) - np.maximum(top, rows), 0, None)
    wide = np.clip(np.minimum(right, columns + 1) - np.maximum(left, columns), 0, None)
    return np.outer(high, wide).ravel()


def _labels(scenes: list[Scene], owners: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    labels = {
        name: np.full(owners.shape, IGNORED, dtype=np.int64) for name in ("shape", "colour", "size", "background")
    }
    for row, scene in enumerate(scenes):
        labels["background"][row, owners[row] != IGNORED] = LARGE_WORLD.backgrounds.index(scene.background)
        labels["shape"][row, owners[row] == -1] = len(SHAPES)
        for index, thing in enumerate(scene.things):
            mine = owners[row] == index
            labels["shape"][row, mine] = SHAPES.index(thing.shape)
            labels["colour"][row, mine] = COLOURS.index(thing.colour)
            labels["size"][row, mine] = SIZES.index(thing.size)
    return labels
