"""Ask for a scene as JSON by a schema, in the prompt that `df.vl.extract` makes of it.

The answer has the properties in the order of the schema, and the white space of `json.dumps`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from qwenvl_kit.tasks.schema import read_schema

from ._questions import BACKGROUND, Listing
from ._world import CELLS, LARGE_WORLD, Scene, Thing, World

# Names of properties, and how their values are read from an object.
_OF_THING: dict[str, Callable[[Thing], str]] = {
    "shape": lambda thing: thing.shape,
    "colour": lambda thing: thing.colour,
    "color": lambda thing: thing.colour,
    "size": lambda thing: thing.size,
    "place": lambda thing: CELLS[thing.cell],
}
_LISTS = {"shapes": "shape", "colours": "colour", "colors": "colour", "places": "place"}
_LISTED_VALUES = 0.25


def describe(scene: Scene, schema: Mapping[str, Any]) -> Listing:
    """Ask for the scene by a JSON Schema whose properties `sample_schema` knows.

    >>> from qwenvl_kit.demo.scenes import Scene, Thing
    >>> star = Thing(shape="star", colour="red", size="large", cell=4)
    >>> schema = {"type": "object", "properties": {"count": {"type": "integer"}, "shapes": {"type": "array"}}}
    >>> describe(Scene(background="white", things=(star,)), schema).answer
    '{"count": 1, "shapes": ["star"]}'
    """
    parts: list[tuple[str, tuple[int, ...]]] = []
    for at, (name, one) in enumerate(schema["properties"].items()):
        key = f'{", " if at else "{"}"{name}": '
        first, *more = _value(scene, name, one)
        parts += [(key + first[0], first[1]), *more]
    texts, about = zip(*parts, ("}", ()), strict=True)
    return Listing(prompt=_prompt(json.dumps(schema)), parts=texts, about=about)


def scene_schema(*of_thing: str) -> dict[str, Any]:
    """Return a schema of count, background and objects with these properties; by default with all of them."""
    thing = {name: _text() for name in of_thing or ("shape", "colour", "size", "place")}
    objects = {"type": "array", "items": _object(thing)}
    return _object({"count": {"type": "integer"}, "background": _text(), "objects": objects})


def sample_schema(scene: Scene, rng: np.random.Generator, *, world: World = LARGE_WORLD) -> dict[str, Any]:
    """Draw a schema: some properties of a scene, seldom in another order, some with their possible values.

    A scene with one object may have the properties of this object beside its own.
    """
    names = [name for name in ("count", "background") if rng.random() < 0.75]
    of_thing: dict[str, Any] = {}
    if len(scene.things) == 1 and rng.random() < 0.3:
        of_thing = _sample_thing(rng, world)
        names += of_thing
    elif rng.random() < 0.8 or not names:
        names.append("objects")
    else:
        names += list(rng.permutation(list(_LISTS)))[: int(rng.integers(3))]
    if rng.random() < 0.3:
        rng.shuffle(names)
    values: dict[str, Sequence[object]] = {
        "background": world.backgrounds,
        "count": range(1, world.max_objects + 1),
    }
    properties: dict[str, Any] = {}
    for name in names:
        if name in of_thing:
            properties[name] = of_thing[name]
        elif name == "objects":
            properties[name] = {"type": "array", "items": _object(_sample_thing(rng, world))}
        elif name in _LISTS:
            properties[name] = {"type": "array", "items": _text()}
        elif rng.random() < _LISTED_VALUES:
            properties[name] = _one_of(values[name], rng)
        else:
            properties[name] = {"type": "integer"} if name == "count" else _text()
    return _object(properties)


def _sample_thing(rng: np.random.Generator, world: World) -> dict[str, Any]:
    colour = "colour" if rng.random() < 0.6 else "color"
    names = [name for name in ("shape", colour, "size", "place") if rng.random() < 0.8] or ["shape", colour]
    if rng.random() < 0.3:
        rng.shuffle(names)
    values: dict[str, Sequence[object]] = {
        "shape": world.shapes,
        colour: world.colours,
        "size": world.sizes,
        "place": CELLS,
    }
    is_listed = rng.random() < _LISTED_VALUES
    return {name: _one_of(values[name], rng) if is_listed and rng.random() < 0.5 else _text() for name in names}


def _one_of(values: Sequence[object], rng: np.random.Generator) -> dict[str, Any]:
    order = rng.permutation(len(values)) if rng.random() < 0.5 else range(len(values))
    return {"enum": [values[at] for at in order]}


def _value(scene: Scene, name: str, schema: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the pieces of a value, each with the objects that decide it."""
    every = tuple(range(len(scene.things)))
    if name == "count":
        yield str(len(scene.things)), every
    elif name == "background":
        yield json.dumps(scene.background), (BACKGROUND,)
    elif name in _OF_THING:
        yield json.dumps(_OF_THING[name](scene.things[0])), (0,)
    else:
        for row, thing in enumerate(scene.things):
            yield ("[" if row == 0 else ", ") + _item(thing, name, schema), (row,)
        yield "]", ()


def _item(thing: Thing, name: str, schema: Mapping[str, Any]) -> str:
    if name in _LISTS:
        return json.dumps(_OF_THING[_LISTS[name]](thing))
    return json.dumps({key: _OF_THING[key](thing) for key in schema["items"]["properties"]})


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties)}


def _text() -> dict[str, Any]:
    return {"type": "string"}


@lru_cache(maxsize=4096)
def _prompt(schema: str) -> str:
    return read_schema(json.loads(schema)).prompt()
