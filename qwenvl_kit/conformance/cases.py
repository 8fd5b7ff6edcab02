"""Draw the pictures of a conformance run and put questions to them: rounds of cases that differ in one respect each."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from qwenvl_kit.demo.scenes import LARGE_WORLD, Named, Scene, draw, image_size, locate, sample_scenes
from qwenvl_kit.images.resize import resize, smart_resize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qwenvl_kit.types import PatchGeometry

SYSTEM = "You are a helpful assistant."
"""The system prompt that the family's chat template adds where a request has none."""

OTHER_SYSTEM = "Answer in one short sentence. You see drawn objects."

_CAPTIONS = ("Describe this image in detail.", "请给出这张图片的详细描述。")
_N_ALIKE, _N_VARIED, _N_UNSIZED, _N_LONG = 7, 7, 5, 3
_ASPECTS = (2.6, 3.4, 5.2, 7.3, 9.1, 11.7)
_TURNS: tuple[tuple[int, int], ...] = ((2, 2), (3, 3), (6, 8), (8, 6))  # EXIF orientations, and what undoes each
_FILLER = "The picture was drawn by a program and shows a few objects. "


@dataclass(frozen=True, kw_only=True)
class Case:
    """One question.

    Attributes
    ----------
    files : tuple of bytes
        Encoded images, in order.
    prompt : str
        The question.
    twin : int or None
        Index of the case of `base` whose answer it must have.
    """

    files: tuple[bytes, ...]
    prompt: str
    twin: int | None = None


@dataclass(frozen=True, kw_only=True)
class Round:
    """Cases that are asked in one run.

    Attributes
    ----------
    name : str
        Of the round.
    cases : tuple of Case
        In the order in which they are asked.
    system : str or None
        System prompt; None leaves it to the chat template.
    penalty : float or None
        Repetition penalty; None leaves it to the engine.
    in_flight : int
        Rows that are asked at once.
    sends_files : bool
        A server gets the files as they are, and decodes and resizes them itself.
    max_new_tokens : int
        Longest answer.
    """

    name: str
    cases: tuple[Case, ...]
    system: str | None = SYSTEM
    penalty: float | None = 1.0
    in_flight: int = 1
    sends_files: bool = False
    max_new_tokens: int = 40


def rounds(geometry: PatchGeometry, context: int, seed: int) -> dict[str, Round]:
    """Return the rounds by name.

    Parameters
    ----------
    geometry : PatchGeometry
        The embedded model's; images of most rounds have a size that a processor leaves as it is.
    context : int
        Most tokens of a prompt and its answer.
    seed : int
        Of the scenes.
    """
    scenes = _native_scenes(geometry, seed)
    alike, varied = scenes[:_N_ALIKE], scenes[_N_ALIKE:]
    base = tuple(_base_cases(alike, varied, geometry))
    shuffled = np.random.default_rng(seed).permutation(len(base)).tolist()
    twins = [replace(case, twin=at) for at, case in enumerate(base)]
    mixed = tuple(twins[at] for at in shuffled)
    made = [
        Round(name="base", cases=base),
        Round(name="alike", cases=tuple(twins[:_N_ALIKE]), in_flight=_N_ALIKE),
        Round(name="by two", cases=mixed[: len(mixed) // 2], in_flight=2),
        Round(name="by seven", cases=mixed, in_flight=7),
        Round(name="no system prompt", cases=tuple(twins[5:9]), system=None),
        Round(name="other system prompt", cases=base[5:9], system=OTHER_SYSTEM, max_new_tokens=16),
        # Words that the model does not know make it unsure, so that a penalty changes its answer.
        Round(name="default penalty", cases=base[5:11], system=OTHER_SYSTEM, penalty=None, max_new_tokens=16),
        Round(name="turned", cases=tuple(_turned(base, _pixels(scenes[0], geometry))), sends_files=True),
        Round(name="unsized", cases=tuple(_unsized(base, varied)), sends_files=True),
        Round(name="long images", cases=tuple(_long_images(varied, geometry)), sends_files=True),
        Round(name="two images", cases=tuple(_pairs(base)), max_new_tokens=16),
        Round(name="long prompt", cases=tuple(_long_prompts(base, context)), max_new_tokens=16),
    ]
    return {one.name: one for one in made}


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels (H, W, 3) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    return file.getvalue()


def jpeg(image: Image.Image, orientation: int) -> bytes:
    """Return an image as a JPEG file of an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "jpeg", quality=95, subsampling=0, exif=exif)
    return file.getvalue()


def pixels_of(file: bytes) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) of a file that `png` or `jpeg` made, not turned."""
    return np.asarray(Image.open(io.BytesIO(file), formats=("PNG", "JPEG")).convert("RGB"))


def _native_scenes(geometry: PatchGeometry, seed: int) -> list[Scene]:
    """Return scenes of one square size, then others, whose resized images keep their size if resized again."""
    side = int((geometry.min_pixels * geometry.max_pixels) ** 0.25)
    scenes = sample_scenes(4 * (_N_ALIKE + _N_VARIED), seed=seed, world=LARGE_WORLD)
    alike = [replace(scene, aspect=1.0, long_side=side) for scene in scenes if len(scene.things) > 1][:_N_ALIKE]
    rest = [scene for scene in scenes[2 * _N_ALIKE :] if _is_stable(_native_size(scene, geometry), geometry)]
    return alike + [scene for scene in rest if len(scene.things) > 1][:_N_VARIED]


def _is_stable(size: tuple[int, int], geometry: PatchGeometry) -> bool:
    return smart_resize(*size, geometry) == size


def _native_size(scene: Scene, geometry: PatchGeometry) -> tuple[int, int]:
    return smart_resize(*image_size(scene), geometry)


def _pixels(scene: Scene, geometry: PatchGeometry) -> NDArray[np.uint8]:
    return resize(draw(scene), _native_size(scene, geometry))


def _base_cases(alike: list[Scene], varied: list[Scene], geometry: PatchGeometry) -> Iterator[Case]:
    """Ask for captions of images of one size, then for captions and boxes of others, in turn."""
    for scene in alike:
        yield Case(files=(png(_pixels(scene, geometry)),), prompt=_CAPTIONS[0])
    for at, scene in enumerate(varied):
        height, width = _native_size(scene, geometry)
        thing = scene.things[-1]
        name = Named(colour=thing.colour, shape=thing.shape)
        boxes = locate(scene, "detect", "zh" if at % 4 == 0 else "en", height=height, width=width, names=(name,))
        prompt = boxes.prompt if at % 2 == 0 else _CAPTIONS[at // 2 % 2]
        yield Case(files=(png(_pixels(scene, geometry)),), prompt=prompt)


def _turned(base: tuple[Case, ...], first: NDArray[np.uint8]) -> Iterator[Case]:
    """Store an image turned, with the EXIF orientation that turns it back."""
    ways = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180}
    ways |= {6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}
    for at, (orientation, undone) in enumerate(_TURNS):
        image = Image.fromarray(pixels_of(base[at].files[0])).transpose(ways[undone])
        yield replace(base[at], files=(jpeg(image, orientation),), twin=at)


def _unsized(base: tuple[Case, ...], varied: list[Scene]) -> Iterator[Case]:
    for at, scene in enumerate(varied[:_N_UNSIZED], start=_N_ALIKE):
        yield replace(base[at], files=(png(draw(scene)),), twin=at)


def _long_images(varied: list[Scene], geometry: PatchGeometry) -> Iterator[Case]:
    """Ask about images whose rounded size would be resized again, where there are such."""
    found = [
        replace(scene, aspect=aspect, long_side=700)
        for scene in varied
        for aspect in _ASPECTS
        if not _is_stable(smart_resize(*image_size(replace(scene, aspect=aspect, long_side=700)), geometry), geometry)
    ]
    for scene in found[:: max(1, len(found) // _N_LONG)][:_N_LONG]:
        yield Case(files=(png(draw(scene)),), prompt=_CAPTIONS[0])


def _pairs(base: tuple[Case, ...]) -> Iterator[Case]:
    for first, second in ((0, 7), (8, 1), (2, 9)):
        yield Case(files=(*base[first].files, *base[second].files), prompt=_CAPTIONS[0])


def _long_prompts(base: tuple[Case, ...], context: int) -> Iterator[Case]:
    """Put a text before the question that fills three quarters of the context with tokens ; it has about 25."""
    for at in (0, 8):
        n_times = int(0.75 * context) // 30
        yield replace(base[at], prompt=_FILLER * n_times + base[at].prompt)
