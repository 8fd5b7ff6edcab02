"""Judge boxes and points that a model answered, in pixels of the image that it got."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwenvl_kit.boxes.geometry import inside, iou
from qwenvl_kit.demo.scenes import LANGUAGES, Box, Language, Locate

_LEAST_IOU = 0.5
#: Key and count of the numbers of an object.
KEYS: dict[Locate, tuple[str, int]] = {"detect": ("bbox_2d", 4), "point": ("point_2d", 2)}

Item = tuple[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Located:
    """One answer and its truth.

    Attributes
    ----------
    asked
        "one" for objects of one name, "all" for all objects.
    truth
        Label and box of each object.
    given
        Label and box, or label and point, of each object in the answer; None for an answer that cannot be read.
    """

    language: Language
    what: Locate
    asked: str
    truth: tuple[tuple[str, Box], ...]
    given: tuple[Item, ...] | None


@dataclass(frozen=True, kw_only=True)
class PlaceScore:
    """Figures of one group of answers.

    Attributes
    ----------
    n_true, n_given, n_right
        Objects in the images, in the answers, and those of the answers that match one in the image: by label, and by an
        IoU of 0.5 or a point inside of the box.
    mean_iou
        Over the objects in the images; 0 for one without a match by label. None for points.
    n_unread
        Answers that cannot be read.
    """

    language: Language
    what: Locate
    asked: str
    n_true: int
    n_given: int
    n_right: int
    mean_iou: float | None
    n_unread: int

    @property
    def f1(self) -> float:
        """Twice the right objects over true and given ones."""
        return 2 * self.n_right / max(1, self.n_true + self.n_given)

    @property
    def found(self) -> float:
        """Share of the true objects that are found."""
        return self.n_right / max(1, self.n_true)


def read_items(text: str | None, what: Locate) -> tuple[Item, ...] | None:
    r"""Read an answer, fenced or bare; None if it is not an array of objects with a label and numbers.

    >>> read_items('```json\n[\n\t{"point_2d": [3, 4], "label": "star"}\n]\n```', "point")
    (('star', (3, 4)),)
    """
    key, n_numbers = KEYS[what]
    try:
        array = json.loads((text or "").removeprefix("```json\n").removesuffix("\n```"))
        items = tuple((str(one["label"]), tuple(one[key])) for one in array)
    except (ValueError, TypeError, KeyError):
        return None
    return items if all(len(numbers) == n_numbers for _, numbers in items) else None


def score_places(answers: Iterable[Located]) -> list[PlaceScore]:
    """Return the figures of each language and question."""
    groups: dict[tuple[Language, Locate, str], list[Located]] = {}
    for answer in answers:
        groups.setdefault((answer.language, answer.what, answer.asked), []).append(answer)
    ordered = sorted(groups.items(), key=lambda group: (LANGUAGES.index(group[0][0]), *group[0][1:]))
    return [_score(*key, group) for key, group in ordered]


def place_table(scores: Iterable[PlaceScore]) -> str:
    """Return the scores as a Markdown table."""
    lines = [
        "| language | what | asked for | objects | given | right | F1 | found | mean IoU | unread |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for s in scores:
        mean = "" if s.mean_iou is None else f"{s.mean_iou:.3f}"
        lines.append(
            f"| {s.language} | {s.what} | {s.asked} | {s.n_true} | {s.n_given} | {s.n_right} | {s.f1:.3f} "
            f"| {s.found:.3f} | {mean} | {s.n_unread} |"
        )
    return "\n".join(lines)


def _score(language: Language, what: Locate, asked: str, group: list[Located]) -> PlaceScore:
    closeness = [value for answer in group for value in _closeness(answer)]
    n_true = sum(len(answer.truth) for answer in group)
    return PlaceScore(
        language=language,
        what=what,
        asked=asked,
        n_true=n_true,
        n_given=sum(len(answer.given or ()) for answer in group),
        n_right=sum(value >= _LEAST_IOU for value in closeness),
        mean_iou=sum(closeness) / max(1, n_true) if what == "detect" else None,
        n_unread=sum(answer.given is None for answer in group),
    )


def _closeness(answer: Located) -> list[float]:
    """Match objects of one label, the closest pair first; return the IoU, or 1 for a point inside, of each true one."""
    found = [0.0] * len(answer.truth)
    if not answer.given or not answer.truth:
        return found
    close = _overlaps(answer.what, [box for _, box in answer.truth], [numbers for _, numbers in answer.given])
    close *= np.array([[said == label for said, _ in answer.given] for label, _ in answer.truth])
    while close.max() > 0:
        row, column = np.unravel_index(int(close.argmax()), close.shape)
        found[row] = float(close[row, column])
        close[row], close[:, column] = 0, 0
    return found


def _overlaps(what: Locate, truth: list[Box], given: list[tuple[float, ...]]) -> NDArray[np.float64]:
    """Return the IoU, or 1 for a point inside, of each true box (n) and each given object (m)."""
    overlaps = iou(truth, given) if what == "detect" else inside(given, truth).T.astype(np.float64)
    return overlaps
