"""Make the rows on which an export is compared with its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from qwenvl_kit._warnings import warn

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    ImageInput = Image.Image | NDArray[np.uint8]
    _Images = Sequence[ImageInput] | None

_PROMPTS = (
    "Describe this picture.",
    "请给出这张图片的详细描述。",
    "What is in the picture, where is it, and which colour has it?",
)
_SIZES = ((112, 112), (84, 140), (224, 56), (100, 150), (168, 252), (61, 203), (280, 140), (336, 308))


@dataclass(frozen=True, slots=True, eq=False)
class CompareRow:
    """A rendered prompt and its images."""

    text: str
    images: list[Image.Image]


def model_inputs(processor: Any, rows: Sequence[CompareRow]) -> dict[str, Tensor]:
    """Return the processor's tensors for a batch of rows, padded on the left."""
    made: dict[str, Tensor] = processor(
        text=[row.text for row in rows],
        images=[image for row in rows for image in row.images],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    return dict(made)


def make_rows(processor: Any, images: Sequence[ImageInput]) -> list[CompareRow]:
    """Return a row per image; every third row shows the next image too."""
    converted = [one if isinstance(one, Image.Image) else Image.fromarray(one) for one in images]
    rows = []
    for at, image in enumerate(converted):
        shown = [image.convert("RGB")]
        if at % 3 == 2:
            shown.append(converted[(at + 1) % len(converted)].convert("RGB"))
        content = [*({"type": "image"} for _ in shown), {"type": "text", "text": _PROMPTS[at % len(_PROMPTS)]}]
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        rows.append(CompareRow(text, shown))
    return rows


def images_of(images: _Images, pictures: _Images) -> _Images:
    """Return the images of a call that may still pass them as ``pictures``."""
    if pictures is None:
        return images
    warn("pictures= is now images=; the former name leaves in the release after next.", DeprecationWarning)
    return pictures


def draw_images(n_images: int) -> list[Image.Image]:
    """Draw images of mixed sizes, the same ones each time."""
    rng = np.random.default_rng(0)
    return [_draw_one(*_SIZES[at % len(_SIZES)], rng) for at in range(n_images)]


def _draw_one(height: int, width: int, rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (width, height), tuple(map(int, rng.integers(0, 256, 3))))
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        left, top = rng.uniform(0, 0.7, 2) * (width, height)
        side = rng.uniform(0.15, 0.4) * min(width, height)
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((left, top, left + side, top + side), fill=tuple(map(int, rng.integers(0, 256, 3))))
    return image
