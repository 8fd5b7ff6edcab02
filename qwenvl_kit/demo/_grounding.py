"""Ask for boxes and points of objects, in the prompts and the JSON of the published Qwen2.5-VL models.

Coordinates are whole pixels of the image that the model gets, after resizing. The point of an object is the centre of
its box.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qwenvl_kit.tasks.box_parser import Kind
from qwenvl_kit.tasks.grounding_prompts import object_prompt

from ._drawing import Box, boxes, image_size
from ._language import Language, kind_words, thing_kind, word
from ._questions import Listing
from ._world import LARGE_WORLD, Scene, Thing, World

#: What is asked of an object.
Locate = Literal["detect", "point"]

_KINDS: dict[Locate, Kind] = {"detect": "box", "point": "point"}
_KEYS: dict[Locate, str] = {"detect": "bbox_2d", "point": "point_2d"}
_SHAPE_ALONE = 0.625  # of names without a colour or a shape
_ANYTHING: dict[Language, str] = {"zh": "物体", "en": "object"}


@dataclass(frozen=True, kw_only=True)
class Named:
    """Objects of a colour, of a shape, or of both.

    >>> Named(colour="red", shape="star").words("en"), Named(colour="red").words("zh")
    ('red star', '红色物体')
    """

    colour: str | None = None
    shape: str | None = None

    def fits(self, thing: Thing) -> bool:
        """Whether an object has this name."""
        return self.colour in (None, thing.colour) and self.shape in (None, thing.shape)

    def words(self, language: Language) -> str:
        """Return the name as a label."""
        if self.shape is None:
            colour = word(self.colour or "", language)
            return f"{colour}{_ANYTHING['zh']}" if language == "zh" else f"{colour} {_ANYTHING['en']}"
        return word(self.shape, language) if self.colour is None else kind_words(self.colour, self.shape, language)


def locate(
    scene: Scene,
    what: Locate,
    language: Language,
    *,
    height: int,
    width: int,
    names: tuple[Named, ...] = (),
    is_fenced: bool = True,
) -> Listing:
    r"""Ask for the boxes or the points of named objects, or of all objects, in raster order.

    >>> from qwenvl_kit.demo.scenes import Scene, Thing
    >>> star = Thing(shape="star", colour="red", size="large", cell=4)
    >>> locate(Scene(background="white", things=(star,)), "detect", "en", height=112, width=112).answer
    '```json\n[\n\t{"bbox_2d": [41, 41, 71, 71], "label": "red star"}\n]\n```'

    Parameters
    ----------
    scene
        The subject.
    what
        Boxes ("detect") or centres of boxes ("point").
    language
        Of the prompt and the labels.
    height, width
        Of the image that the model gets, in pixels.
    names
        Which objects; none of them fits an object twice. All objects by default.
    is_fenced
        A fenced block of lines, as the published models write it; else a bare array on one line.
    """
    labels = _labels(scene, names, language)
    located = resized_boxes(scene, height=height, width=width)
    items = [_item(what, located[row], label) for row, label in labels]
    prompt = object_prompt(_KINDS[what], tuple(name.words(language) for name in names), language)
    parts = _parts(items, is_fenced=is_fenced)
    return Listing(prompt=prompt, parts=parts, about=(*((row,) for row, _ in labels), ()))


def resized_boxes(scene: Scene, *, height: int, width: int) -> list[Box]:
    """Return (left, top, right, bottom) of every object after the drawn image was resized to this size, in pixels."""
    drawn_height, drawn_width = image_size(scene)
    down, across = height / drawn_height, width / drawn_width
    return [
        (left * across, top * down, right * across, bottom * down)
        for left, top, right, bottom in boxes(scene, height=drawn_height, width=drawn_width)
    ]


def sample_names(
    scene: Scene,
    rng: np.random.Generator,
    *,
    n: int = 1,
    absent: float = 0.25,
    several: float = 0.0,
    whole: float = 0.6,
    world: World = LARGE_WORLD,
) -> tuple[Named, ...]:
    """Draw up to `n` names for one prompt, of which none fits an object of another.

    Parameters
    ----------
    scene
        The subject.
    rng
        Source of the names.
    n
        Most names.
    absent
        Share of names that fit no object. They combine the colour of one object with another shape or the reverse.
    several
        Share of the other names that fit several objects, where the scene has such.
    whole
        Share of the remaining names that hold colour and shape; of the others, five in eight hold the shape alone.
    world
        Shapes and colours of absent objects.
    """
    chosen: list[Named] = []
    for _ in range(n):
        name = (
            _absent_name(scene, rng, whole, world)
            if rng.random() < absent
            else _present_name(scene, rng, several, whole)
        )
        taken = {row for other in chosen for row, thing in enumerate(scene.things) if other.fits(thing)}
        if name not in chosen and not any(name.fits(scene.things[row]) for row in taken):
            chosen.append(name)
    return tuple(chosen)


def _present_name(scene: Scene, rng: np.random.Generator, several: float, whole: float) -> Named:
    if rng.random() < several:
        shared = _shared_names(scene)
        if shared:
            return shared[int(rng.integers(len(shared)))]
    colour, shape = scene.things[int(rng.integers(len(scene.things)))].kind
    return _generalised(colour, shape, rng, whole)


def _shared_names(scene: Scene) -> list[Named]:
    """Return the names that fit several objects."""
    names = {
        name: sum(name.fits(thing) for thing in scene.things)
        for colour, shape in (thing.kind for thing in scene.things)
        for name in (Named(colour=colour, shape=shape), Named(colour=colour), Named(shape=shape))
    }
    return [name for name, n_things in names.items() if n_things > 1]


def _absent_name(scene: Scene, rng: np.random.Generator, whole: float, world: World) -> Named:
    while True:
        colour, shape = scene.things[int(rng.integers(len(scene.things)))].kind
        if rng.random() < 0.5:
            colour = world.colours[int(rng.integers(len(world.colours)))]
        else:
            shape = world.shapes[int(rng.integers(len(world.shapes)))]
        name = _generalised(colour, shape, rng, whole)
        if not any(name.fits(thing) for thing in scene.things):
            return name


def _generalised(colour: str, shape: str, rng: np.random.Generator, whole: float) -> Named:
    kind = rng.random()
    shapes_until = whole + (1 - whole) * _SHAPE_ALONE
    return Named(colour=None if whole <= kind < shapes_until else colour, shape=None if kind >= shapes_until else shape)


def _labels(scene: Scene, names: tuple[Named, ...], language: Language) -> list[tuple[int, str]]:
    """Return index and label of every object that a name fits."""
    if not names:
        return [(row, thing_kind(thing, language)) for row, thing in enumerate(scene.things)]
    return [(row, name.words(language)) for row, thing in enumerate(scene.things) for name in names if name.fits(thing)]


def _item(what: Locate, box: Box, label: str) -> str:
    left, top, right, bottom = box
    numbers = [left, top, right, bottom] if what == "detect" else [(left + right) / 2, (top + bottom) / 2]
    return json.dumps({_KEYS[what]: [round(number) for number in numbers], "label": label}, ensure_ascii=False)


def _parts(items: list[str], *, is_fenced: bool) -> tuple[str, ...]:
    """Return a part for each item, and the end."""
    begin, between, end = ("```json\n[\n\t", ",\n\t", "\n]\n```") if is_fenced else ("[", ", ", "]")
    if not items:
        return ("```json\n[]\n```" if is_fenced else "[]",)
    return (begin + items[0], *(between + item for item in items[1:]), end)
