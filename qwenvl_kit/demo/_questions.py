"""Ask questions about a scene, each with the single answer that the image allows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from ._language import Language, article, kind_words, number, sentence, thing_words, word
from ._world import CELLS, LARGE_WORLD, Scene, World

#: Kinds of questions; `is_there` is yes as often as no, `number` is asked of the only sign of a scene.
KINDS = ("count", "background", "colour", "shape", "what", "where", "is_there", "number")

#: Stands for the background among indices of objects.
BACKGROUND = -1

#: Stands for the signs among indices of objects.
SIGN = -2

# The first phrasing of a question is the default one.
_PROMPTS: dict[Language, dict[str, tuple[str, ...]]] = {
    "zh": {
        "count": ("图中有几个物体？", "有几个物体？"),
        "background": ("背景是什么颜色？",),
        "colour": ("{shape}是什么颜色？",),
        "shape": ("{colour}的物体是什么形状？",),
        "what": ("{place}是什么？", "{place}有什么？"),
        "where": ("{thing}在哪里？",),
        "is_there": ("图中有{thing}吗？", "有{thing}吗？"),
        "number": ("牌子上写着什么数字？", "牌子上的数字是几？"),
    },
    "en": {
        "count": ("How many objects are there?", "How many objects are in the image?"),
        "background": ("What color is the background?", "What colour is the background?"),
        "colour": ("What color is the {shape}?", "What colour is the {shape}?"),
        "shape": ("What shape is the {colour} object?",),
        "what": ("What is at the {place}?",),
        "where": ("Where is the {thing}?",),
        "is_there": ("Is there {article} {thing}?", "Is there {article} {thing} in the image?"),
        "number": ("What number is written on the sign?", "What number is on the sign?"),
    },
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a scene.

    Attributes
    ----------
    kind
        One of `KINDS`.
    hard
        A "no" although the image holds the asked shape in another colour and the asked colour on another shape.
    about
        Indices into `scene.things` of the objects that decide the answer; `SIGN` for the sign.
    """

    kind: str
    prompt: str
    answer: str
    hard: bool = False
    about: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A prompt whose answer lists objects.

    Attributes
    ----------
    parts
        Pieces of the answer; joined, they are the answer.
    about
        For each part, indices into `scene.things` of the objects that decide it; `BACKGROUND` for the background.
    """

    prompt: str
    parts: tuple[str, ...]
    about: tuple[tuple[int, ...], ...]

    @property
    def answer(self) -> str:
        """The whole answer."""
        return "".join(self.parts)


def questions(
    scene: Scene,
    rng: np.random.Generator,
    language: Language = "zh",
    *,
    world: World = LARGE_WORLD,
    vary: bool = False,
) -> list[Question]:
    """Ask at most one question of each kind, in the order of `KINDS`.

    A kind without a single answer in this scene is left out, such as the colour of "the circle" among two circles.
    `is_there` is yes in half of the cases. A no is a hard one wherever the scene allows it.

    Parameters
    ----------
    scene
        The subject of the questions.
    rng
        Source of the objects, places and phrasings.
    language
        "zh" or "en".
    world
        Shapes and colours of absent objects.
    vary
        Use any phrasing instead of the default one.
    """
    asker = Asker(scene, rng, language, world=world, vary=vary)
    asked = [
        asker.count(),
        asker.background(),
        asker.colour(),
        asker.shape(),
        asker.what(),
        asker.where(),
        asker.is_there(truth=bool(rng.random() < 0.5)),
        asker.number(),
    ]
    return [question for question in asked if question is not None]


class Asker:
    """Questions about one scene in one language. A method returns None if its kind has no single answer."""

    def __init__(
        self, scene: Scene, rng: np.random.Generator, language: Language, *, world: World = LARGE_WORLD, vary: bool
    ) -> None:
        self.scene, self.rng, self.language, self.world, self.vary = scene, rng, language, world, vary

    def count(self) -> Question:
        """Ask for the number of objects."""
        n_things = len(self.scene.things)
        phrase = number(n_things, self.language) + ("个" if self.language == "zh" else "")
        answer = sentence(phrase, self.language)
        return Question(kind="count", prompt=self._prompt("count"), answer=answer, about=tuple(range(n_things)))

    def background(self) -> Question:
        """Ask for the colour of the background."""
        return Question(
            kind="background", prompt=self._prompt("background"), answer=self._sentence(self.scene.background)
        )

    def colour(self) -> Question | None:
        """Ask for the colour of the only object of a shape."""
        row = self._only([thing.shape for thing in self.scene.things])
        if row is None:
            return None
        thing = self.scene.things[row]
        prompt = self._prompt("colour", shape=self._name(thing.shape))
        return Question(kind="colour", prompt=prompt, answer=self._sentence(thing.colour), about=(row,))

    def shape(self) -> Question | None:
        """Ask for the shape of the only object of a colour."""
        row = self._only([thing.colour for thing in self.scene.things])
        if row is None:
            return None
        thing = self.scene.things[row]
        prompt = self._prompt("shape", colour=self._name(thing.colour))
        return Question(kind="shape", prompt=prompt, answer=self._sentence(thing.shape), about=(row,))

    def what(self, *, empty: bool | None = None) -> Question:
        """Ask for the object at a place, which is empty one time in four."""
        rows = {thing.cell: row for row, thing in enumerate(self.scene.things)}
        empty = bool(self.rng.random() < 0.25) if empty is None else empty
        signs = {sign.cell for sign in self.scene.signs}
        cells = [cell for cell in range(len(CELLS)) if (cell in rows) != empty and cell not in signs]
        cell = int(self.rng.choice(cells))
        prompt = self._prompt("what", place=self._name(CELLS[cell]))
        if empty:
            return Question(kind="what", prompt=prompt, answer="没有物体。" if self.language == "zh" else "Nothing.")
        answer = sentence(thing_words(self.scene.things[rows[cell]], self.language), self.language)
        return Question(kind="what", prompt=prompt, answer=answer, about=(rows[cell],))

    def where(self) -> Question | None:
        """Ask for the place of the only object of a colour and shape."""
        row = self._only([thing.kind for thing in self.scene.things])
        if row is None:
            return None
        thing = self.scene.things[row]
        prompt = self._prompt("where", thing=kind_words(thing.colour, thing.shape, self.language))
        return Question(kind="where", prompt=prompt, answer=self._sentence(CELLS[thing.cell]), about=(row,))

    def is_there(self, *, truth: bool, hard: bool = True) -> Question:
        """Ask if there is an object of a colour and shape; the answer is `truth`.

        A hard no combines the colour of one object with the shape of another, where the scene allows it. With
        `hard=False` a no shares only a colour or only a shape with the scene.
        """
        present = [thing.kind for thing in self.scene.things]
        if truth:
            colour, shape = present[int(self.rng.integers(len(present)))]
            hard = False
        else:
            candidates, hard = self._absent_kinds(set(present), hard=hard)
            colour, shape = candidates[int(self.rng.integers(len(candidates)))]
        prompt = self._prompt("is_there", article=article(colour), thing=kind_words(colour, shape, self.language))
        yes, no = ("有。", "没有。") if self.language == "zh" else ("Yes.", "No.")
        about = tuple(
            row
            for row, thing in enumerate(self.scene.things)
            if (thing.kind == (colour, shape) if truth else thing.colour == colour or thing.shape == shape)
        )
        return Question(kind="is_there", prompt=prompt, answer=yes if truth else no, hard=hard, about=about)

    def number(self) -> Question | None:
        """Ask for the number on the only sign."""
        if len(self.scene.signs) != 1:
            return None
        answer = sentence(str(self.scene.signs[0].number), self.language)
        return Question(kind="number", prompt=self._prompt("number"), answer=answer, about=(SIGN,))

    def _absent_kinds(self, present: set[tuple[str, str]], *, hard: bool) -> tuple[list[tuple[str, str]], bool]:
        colours, shapes = {colour for colour, _ in present}, {shape for _, shape in present}
        both = [(colour, shape) for colour in sorted(colours) for shape in sorted(shapes)]
        absent = [kind for kind in both if kind not in present]
        if hard and absent:
            return absent, True
        one = [(colour, shape) for colour in self.world.colours for shape in sorted(shapes) if colour not in colours]
        one += [(colour, shape) for colour in sorted(colours) for shape in self.world.shapes if shape not in shapes]
        return one, False

    def _only(self, names: list[str] | list[tuple[str, str]]) -> int | None:
        counts = Counter(names)
        rows = [row for row, name in enumerate(names) if counts[name] == 1]
        return int(self.rng.choice(rows)) if rows else None

    def _prompt(self, kind: str, **slots: str) -> str:
        templates = _PROMPTS[self.language][kind]
        chosen = int(self.rng.integers(len(templates))) if self.vary else 0
        return templates[chosen].format(**slots)

    def _name(self, name: str) -> str:
        return word(name, self.language)

    def _sentence(self, name: str) -> str:
        return sentence(self._name(name), self.language)
