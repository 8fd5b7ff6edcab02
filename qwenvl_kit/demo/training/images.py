"""Pack scenes into padded patches for the vision tower, with labels for each merged token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from qwenvl_kit.demo.scenes import LARGE_WORLD, SIGN, Scene, boxes, draw, resized_boxes, sign_boxes

from .checkpoint import MAX_PIXELS, MIN_PIXELS

#: Most merged tokens of an image.
IMAGE_TOKENS = 18

_DIGITS = tuple("0123456789")

#: Label of tokens without a label.
IGNORED = -100

#: Labels of a merged token; "none" is background alone, or no digit at this place of the number.
LABELS = {
    "shape": (*LARGE_WORLD.shapes, "none"),
    "colour": LARGE_WORLD.colours,
    "size": LARGE_WORLD.sizes,
    "background": LARGE_WORLD.backgrounds,
    "tens": (*_DIGITS, "none"),
    "units": _DIGITS,
}

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)
_PATCH = 14
#: Pixels of the side of a merged token.
TOKEN_SIDE = 2 * _PATCH
_WINDOW_TOKENS = 2
_OWNED_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """Images of several grids, padded.

    Attributes
    ----------
    patches, places, windows
        Inputs of `run_vision`.
    grids
        Merged rows and columns of each image.
    owners
        (B, M) index of the object that a merged token shows, -1 for none, `SIGN` for a sign and -100 for padding.
    labels
        (B, M) index of the shape, colour, size, background or digit; -100 where there is none.
    edges
        (B, M, 4) left, top, right and bottom of the object, in pixels; no meaning without an object.
    """

    patches: Tensor
    places: Tensor
    windows: Tensor
    grids: list[tuple[int, int]]
    owners: Tensor
    labels: dict[str, Tensor]
    edges: Tensor

    def centres(self) -> Tensor:
        """Return x, y, x, y of the centre of each merged token in pixels, (B, M, 4)."""
        columns = torch.tensor([columns for _, columns in self.grids])[:, None]
        at = torch.arange(IMAGE_TOKENS)
        centre = torch.stack([at % columns, at // columns], dim=-1)
        return (centre.repeat(1, 1, 2) + 0.5) * TOKEN_SIDE


def pack_images(scenes: list[Scene]) -> ImageBatch:
    """Draw the scenes, resize them as the processor does, and cut them into patches."""
    n_patches = IMAGE_TOKENS * 4
    patches = np.zeros((len(scenes), n_patches, 3 * _PATCH * _PATCH), dtype=np.float32)
    places = np.zeros((len(scenes), n_patches, 2), dtype=np.int64)
    windows = np.full((len(scenes), n_patches), -1, dtype=np.int64)
    owners = np.full((len(scenes), IMAGE_TOKENS), IGNORED, dtype=np.int64)
    edges = np.zeros((len(scenes), IMAGE_TOKENS, 4), dtype=np.float32)
    labels = {name: np.full((len(scenes), IMAGE_TOKENS), IGNORED, dtype=np.int64) for name in LABELS}
    grids = []
    for row, scene in enumerate(scenes):
        pixels = _resized(draw(scene))
        grid = (pixels.shape[0] // TOKEN_SIDE, pixels.shape[1] // TOKEN_SIDE)
        n_tokens = grid[0] * grid[1]
        patches[row, : 4 * n_tokens] = _patches(pixels)
        places[row, : 4 * n_tokens], windows[row, : 4 * n_tokens] = _places(grid)
        shown = _shown(scene, grid)
        owners[row, :n_tokens] = np.where(shown < len(scene.things), shown, SIGN)
        _label(labels, row, scene, shown)
        placed = np.array(resized_boxes(scene, height=pixels.shape[0], width=pixels.shape[1]), dtype=np.float32)
        edges[row, owners[row] >= 0] = placed[owners[row][owners[row] >= 0]]
        grids.append(grid)
    return ImageBatch(
        patches=torch.from_numpy(patches),
        places=torch.from_numpy(places),
        windows=torch.from_numpy(windows),
        grids=grids,
        owners=torch.from_numpy(owners),
        labels={name: torch.from_numpy(label) for name, label in labels.items()},
        edges=torch.from_numpy(edges),
    )


def input_size(pixels: NDArray[np.uint8]) -> tuple[int, int]:
    """Return height and width in pixels after the processor has resized an image (H, W, 3)."""
    height, width = smart_resize(*pixels.shape[:2], min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    return height, width


def _resized(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = input_size(pixels)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def _patches(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Cut (H, W, 3) into (N, 588); the four patches of a merged token are consecutive."""
    rows, columns = pixels.shape[0] // TOKEN_SIDE, pixels.shape[1] // TOKEN_SIDE
    scaled: NDArray[np.float32] = (pixels.astype(np.float32) / np.float32(255) - _MEAN) / _STD
    cut = scaled.reshape(rows, 2, _PATCH, columns, 2, _PATCH, 3).transpose(0, 3, 1, 4, 6, 2, 5)
    return cut.reshape(rows * columns * 4, -1)


@cache
def _places(grid: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return row and column of every patch, and its window in windowed blocks."""
    rows, columns = grid
    token_row, token_column, inner_row, inner_column = np.unravel_index(
        np.arange(rows * columns * 4), (rows, columns, 2, 2)
    )
    places = np.stack([2 * token_row + inner_row, 2 * token_column + inner_column], axis=1)
    return places, token_row // _WINDOW_TOKENS * columns + token_column // _WINDOW_TOKENS


def _shown(scene: Scene, grid: tuple[int, int]) -> NDArray[np.int64]:
    """Return, for each merged token, the object that covers most of it, counting signs after objects; -1 for none."""
    height, width = grid
    placed = [*boxes(scene, height=height, width=width), *sign_boxes(scene, height=height, width=width)]
    overlaps = np.stack([_overlap(box, grid) for box in placed])  # (things and signs, M)
    areas = np.array([(box[2] - box[0]) * (box[3] - box[1]) for box in placed])
    enough = overlaps.max(axis=0) >= _OWNED_SHARE * np.minimum(areas[overlaps.argmax(axis=0)], 1.0)
    shown = np.where(enough, overlaps.argmax(axis=0), -1)
    n_things = len(scene.things)
    for rows in (
        range(n_things, len(placed)),
        range(n_things),
    ):  # each owns its best token at least, objects before all
        shown[overlaps[rows].argmax(axis=1)] = rows
    return shown


def _overlap(box: tuple[float, float, float, float], grid: tuple[int, int]) -> NDArray[np.float64]:
    left, top, right, bottom = box
    rows, columns = np.arange(grid[0]), np.arange(grid[1])
    high = np.clip(np.minimum(bottom, rows + 1) - np.maximum(top, rows), 0, None)
    wide = np.clip(np.minimum(right, columns + 1) - np.maximum(left, columns), 0, None)
    return np.outer(high, wide).ravel()


def _label(labels: dict[str, NDArray[np.int64]], row: int, scene: Scene, shown: NDArray[np.int64]) -> None:
    """Write the labels of the tokens of one scene."""
    n_tokens, n_things = len(shown), len(scene.things)
    mine = {name: label[row, :n_tokens] for name, label in labels.items()}
    mine["background"][:] = LABELS["background"].index(scene.background)
    mine["shape"][(shown < 0) | (shown >= n_things)] = LABELS["shape"].index("none")
    for index, thing in enumerate(scene.things):
        for name in ("shape", "colour", "size"):
            mine[name][shown == index] = LABELS[name].index(getattr(thing, name))
    for index, sign in enumerate(scene.signs, start=n_things):
        tens, units = divmod(sign.number, 10)
        mine["tens"][shown == index] = LABELS["tens"].index(str(tens) if tens else "none")
        mine["units"][shown == index] = units
