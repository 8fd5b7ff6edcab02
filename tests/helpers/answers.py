"""Answers with boxes and points, as models write them, and spoilt in every way that was seen of models."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

_LABELS = [
    "cat",
    "red car",
    "small cake",
    "猫",
    "man's hat",
    'a "b"',
    "{x}",
    "[1]",
    "",
    "a, box: b",
    "\u202e\x00",
    "🦉",
]
_ODD_NUMBERS = [
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e308", "9" * 400, "9" * 5_000, "true", "null", '"12"', '" 7.5"'),
    *("007", "+3", ".5", "1.", "12px", "[3]", "{}", "--1", "0x10", "1_0", '"nan"', "-5", "1e3"),
]
_LONGEST = 200_000
_NAMES = ["bbox_2d", "bbox", "box", "bounding_box", "point_2d", "point", "Box", "coordinates", "quad"]


def well_formed(draws: random.Random, kind: str = "box", n_most: int = 12) -> str:
    """Return an answer in the model family's own form."""
    n_numbers, name = (4, "bbox_2d") if kind == "box" else (2, "point_2d")
    items = [
        {name: [draws.randint(0, 1_300) for _ in range(n_numbers)], "label": draws.choice(_LABELS)}
        for _ in range(draws.randint(0, n_most))
    ]
    lines = ",\n".join(f"\t{json.dumps(one, ensure_ascii=draws.random() < 0.3)}" for one in items)
    return f"```json\n[\n{lines}\n]\n```"


def spoilt(draws: random.Random) -> str:
    """Return an answer that has been spoilt up to three times, or text without any form; of at most 200,000 characters.

    That is three times the text that fills a context of 32,768 tokens, at two characters a token.
    """
    if draws.random() < 0.1:
        return "".join(draws.choices("{}[]\"':,0a1.- \n\\`tnbox_2dé鹰🦉\u202e", k=draws.randint(0, 3_000)))
    text = well_formed(draws, draws.choice(["box", "point"]))
    for _ in range(draws.randint(1, 3)):
        text = draws.choice(_SPOILERS)(text, draws)
    return text[:_LONGEST]


def _cut(text: str, draws: random.Random) -> str:
    return text[: draws.randint(0, len(text))]


def _single_quotes(text: str, draws: random.Random) -> str:
    return text.replace('"', draws.choice(["'", "“", "`", ""]))


def _other_names(text: str, draws: random.Random) -> str:
    return text.replace("bbox_2d", draws.choice(_NAMES)).replace("point_2d", draws.choice(_NAMES))


def _odd_number(text: str, draws: random.Random) -> str:
    at = [place for place, mark in enumerate(text) if mark.isdigit()]
    if not at:
        return text
    place = draws.choice(at)
    return text[:place] + draws.choice(_ODD_NUMBERS) + text[place + 1 :]


def _nested(text: str, draws: random.Random) -> str:
    depth = draws.choice([1, 2, 5, 200, 3_000])
    return draws.choice(
        [text.replace("[", "[" * 2).replace("]", "]" * 2), "[" * depth + text + "]" * depth, '{"a":' * depth + text]
    )


def _repeated(text: str, draws: random.Random) -> str:
    return text * draws.randint(2, 6) if draws.random() < 0.9 else _loop(draws)


def _loop(draws: random.Random) -> str:
    piece = f'\t{{"bbox_2d": {[draws.randint(0, 999) for _ in range(4)]}, "label": "cat"}},\n'
    return "```json\n[\n" + piece * draws.randint(500, 4_000)


def _mutated(text: str, draws: random.Random) -> str:
    marks = list(text)
    for _ in range(draws.randint(1, 8)):
        at = draws.randint(0, len(marks))
        marks[at : at + draws.randint(0, 3)] = draws.choice(
            ['"', "{", "}", "[", "]", ",", ":", "\\", "\n", "a", "5", ""]
        )
    return "".join(marks)


def _prose(text: str, draws: random.Random) -> str:
    return (
        draws.choice(["Sure! Here [1] they {are}: ", "图中有：", "(1, 2) "])
        + text
        + draws.choice(["", " That's all [0].", "```"])
    )


def _other_form(text: str, draws: random.Random) -> str:
    forms: list[Any] = [
        [[1, 2, 30, 40], [5, 6, 70, 80]],
        [{"bbox_2d": [[1, 2], [30, 40]]}, {"bbox": "1, 2, 30, 40", "name": 3}],
        {"objects": [{"label": ["cat"], "box": [[1, 2, 3, 4], [5, 6, 7, 8]]}]},
        {"cat": [[1, 2, 3, 4]]},
        {"bbox_2d": {"x0": 1, "y0": 2}},
        [{"bbox_2d": [1, 2, 3, 4, 5, 6, 7, 8]}, {}, None, True, "x"],
    ]
    form = json.dumps(draws.choice(forms))
    return draws.choice([form, text + form, form.replace(" ", "\t" * draws.randint(1, 50))])


_SPOILERS: list[Callable[[str, random.Random], str]] = [
    *(_cut, _single_quotes, _other_names, _odd_number, _nested, _repeated, _mutated, _prose, _other_form),
]
