"""Sample scenes from a seed, and assign each to the training or the held-out split."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np

from ._signs import Sign

Split = Literal["train", "heldout"]
_T = TypeVar("_T")

#: The names of the nine cells of a scene, in raster order.
CELLS = (
    "top left",
    "top center",
    "top right",
    "middle left",
    "center",
    "middle right",
    "bottom left",
    "bottom center",
    "bottom right",
)

_HELDOUT_ONE_IN = 8
_SIZE_RANGES = {"large": (0.78, 0.88), "small": (0.48, 0.56)}
_OFFSET = 0.06
_SIGN_EXTENTS = (0.86, 0.96)
_SIGN_OFFSET = 0.02
_SHIFT = 12
_TWIN_PROBABILITY = 0.2
_MIN_SIDE = 84
_MAX_SIDE = 768


@dataclass(frozen=True, kw_only=True)
class World:
    """The shapes, colours, sizes and backgrounds of scenes; a larger world keeps the names of the smaller one.

    Attributes
    ----------
    shapes, colours, sizes, backgrounds
        Names that drawing and both languages define.
    max_objects
        Most objects in a scene, 1 to 9.
    max_aspect
        Most that the longer side of an image is to the shorter one.
    """

    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    sizes: tuple[str, ...] = ("large", "small")
    backgrounds: tuple[str, ...] = ("white", "black", "gray", "beige")
    max_objects: int = 3
    max_aspect: float = 2.0


_EIGHT_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan")
SMALL_WORLD = World(shapes=("circle", "square", "triangle", "star"), colours=_EIGHT_COLOURS)
LARGE_WORLD = World(
    shapes=("circle", "square", "triangle", "star", "diamond", "cross", "ring", "heart"),
    colours=(*_EIGHT_COLOURS, "brown", "white"),
    max_objects=4,
)
WORLDS = {"small": SMALL_WORLD, "large": LARGE_WORLD}


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object of a scene.

    Attributes
    ----------
    cell
        Index into `CELLS`.
    offset
        Distance (x, y) of the centre from the centre of the cell, in cells.
    extent
        Diameter over the shorter side of a cell.
    shift
        Added to red, green and blue of the colour.
    """

    shape: str
    colour: str
    size: str
    cell: int
    offset: tuple[float, float] = (0.0, 0.0)
    extent: float = 0.8
    shift: tuple[int, int, int] = (0, 0, 0)

    @property
    def kind(self) -> tuple[str, str]:
        """Colour and shape."""
        return self.colour, self.shape


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The content of an image: background and objects.

    Attributes
    ----------
    things
        The objects in raster order, one a cell.
    aspect
        Width over height.
    long_side
        The longer side in pixels, unless `draw` gets another.
    shift
        Added to red, green and blue of the background.
    signs
        Plates with numbers in cells without an object. They are no objects: captions and boxes leave them out.
    """

    background: str
    things: tuple[Thing, ...]
    aspect: float = 1.0
    long_side: int = 252
    shift: tuple[int, int, int] = (0, 0, 0)
    signs: tuple[Sign, ...] = ()


def sample_scenes(
    n: int,
    *,
    seed: int = 0,
    split: Split = "heldout",
    world: World = SMALL_WORLD,
    n_things: int | None = None,
) -> list[Scene]:
    """Return `n` scenes of one split; equal arguments return equal scenes.

    >>> [len(scene.things) for scene in sample_scenes(4, seed=7)]
    [1, 2, 3, 1]

    Parameters
    ----------
    n
        Number of scenes.
    seed
        Seed of the random generator.
    split
        "train", or "heldout": scenes that training never draws.
    world
        Shapes, colours, sizes and backgrounds.
    n_things
        Objects per scene; by default the counts 1 to `world.max_objects` take turns.
    """
    rng = np.random.default_rng(seed)
    counts = [n_things or 1 + row % world.max_objects for row in range(n)]
    return [next(scene for scene in _endless(rng, world, count) if split_of(scene) == split) for count in counts]


def sample_scene(rng: np.random.Generator, world: World, *, n_things: int) -> Scene:
    """Draw one scene of either split with `n_things` objects from the generator."""
    background = _pick(rng, world.backgrounds)
    cells = np.sort(rng.choice(len(CELLS), size=n_things, replace=False))
    things: list[Thing] = []
    for cell in cells:
        things.append(_sample_thing(rng, world, background, int(cell), things))
    aspect = float(np.exp(rng.uniform(-1.0, 1.0) * np.log(world.max_aspect)))
    shortest_long_side = _MIN_SIDE * max(aspect, 1 / aspect)
    long_side = int(np.exp(rng.uniform(np.log(shortest_long_side), np.log(_MAX_SIDE + 0.999))))
    long_side = max(long_side, int(np.ceil(shortest_long_side)))
    return Scene(background=background, things=tuple(things), aspect=aspect, long_side=long_side, shift=_shift(rng))


def hang_signs(scene: Scene, rng: np.random.Generator, *, n: int = 1, short: float = 0.1) -> Scene:
    """Return the scene with `n` signs in empty cells, each with a number from 0 to 99.

    >>> scene = hang_signs(sample_scenes(1)[0], np.random.default_rng(0))
    >>> 0 <= scene.signs[0].number <= 99, scene.signs[0].cell in {thing.cell for thing in scene.things}
    (True, False)

    Parameters
    ----------
    scene
        Any scene; its own signs are replaced.
    rng
        Source of numbers and places.
    n
        Number of signs, 0 to the number of empty cells.
    short
        Share of numbers with one digit; 0.1 makes all numbers from 0 to 99 equally frequent.
    """
    taken = {thing.cell for thing in scene.things}
    empty = [cell for cell in range(len(CELLS)) if cell not in taken]
    cells = rng.permutation(empty)[:n]
    return replace(scene, signs=tuple(_sample_sign(rng, int(cell), short) for cell in np.sort(cells)))


def split_of(scene: Scene) -> Split:
    """Return the split of a scene.

    Colours and shapes alone decide the split of a scene with several objects, so a held-out combination appears in
    training in no place, size or order. All its names decide the split of a single object.
    """
    if len(scene.things) == 1:
        thing = scene.things[0]
        names = [*thing.kind, thing.size, CELLS[thing.cell], scene.background]
    else:
        names = sorted(" ".join(thing.kind) for thing in scene.things)
    return "heldout" if zlib.crc32("|".join(names).encode()) % _HELDOUT_ONE_IN == 0 else "train"


def _endless(rng: np.random.Generator, world: World, n_things: int) -> Iterator[Scene]:
    while True:
        yield sample_scene(rng, world, n_things=n_things)


def _sample_thing(rng: np.random.Generator, world: World, background: str, cell: int, before: list[Thing]) -> Thing:
    shape = _pick(rng, world.shapes)
    colour = _pick(rng, [colour for colour in world.colours if colour != background])
    if before and rng.random() < _TWIN_PROBABILITY:  # objects that share a shape or a colour are hard
        twin = _pick(rng, before)
        shape, colour = (twin.shape, colour) if rng.random() < 0.5 else (shape, twin.colour)
    size = _pick(rng, world.sizes)
    offset_x, offset_y = rng.uniform(-_OFFSET, _OFFSET, size=2)
    return Thing(
        shape=shape,
        colour=colour,
        size=size,
        cell=cell,
        offset=(float(offset_x), float(offset_y)),
        extent=float(rng.uniform(*_SIZE_RANGES[size])),
        shift=_shift(rng),
    )


def _sample_sign(rng: np.random.Generator, cell: int, short: float) -> Sign:
    offset_x, offset_y = rng.uniform(-_SIGN_OFFSET, _SIGN_OFFSET, size=2)
    return Sign(
        number=int(rng.integers(10) if rng.random() < short else rng.integers(10, 100)),
        cell=cell,
        offset=(float(offset_x), float(offset_y)),
        extent=float(rng.uniform(*_SIGN_EXTENTS)),
    )


def _pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    return choices[int(rng.integers(len(choices)))]  # many times faster than rng.choice


def _shift(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(-_SHIFT, _SHIFT + 1, size=3).tolist()
    return red, green, blue
