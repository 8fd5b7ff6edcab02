"""Boxes and points of named objects: what each row is asked, and the frame of what its answer holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qwenvl_kit.boxes.frame import pictures_record
from qwenvl_kit.checkpoints.checkpoint import FAMILY
from qwenvl_kit.errors import RowError, printable
from qwenvl_kit.images import count_images
from qwenvl_kit.inference.constraints import check_constraint
from qwenvl_kit.pipeline import Run
from qwenvl_kit.results import result_frame
from qwenvl_kit.tasks.box_parser import Kind, ParsedObject, parse_objects
from qwenvl_kit.tasks.box_scores import object_scores
from qwenvl_kit.tasks.boxes import Coordinates, CoordinateSystem, Size, clip_box, clip_point, coordinate_system
from qwenvl_kit.tasks.extract import check_constrainable, failed_answer, truncated
from qwenvl_kit.tasks.grounding_prompts import (
    Labels,
    Language,
    check_language,
    object_constraint,
    object_labels,
    object_prompt,
)
from qwenvl_kit.types import Prompt, Result, RowPrompt

if TYPE_CHECKING:
    from qwenvl_kit.options import Config

VERBS: dict[Kind, str] = {"box": "detect", "point": "point"}
_COLUMNS: dict[Kind, tuple[str, ...]] = {"box": ("x0", "y0", "x1", "y1"), "point": ("x", "y")}
_SIZES = ("height", "width", "source_height", "source_width")
_SIZES_OF = attrgetter(*_SIZES)
_TEXT = pd.StringDtype(na_value=np.nan)
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class FoundObject:
    """An object of an answer, in pixels of the upright original image.

    Attributes
    ----------
    parsed : ParsedObject
        The same as the answer has it.
    coordinates : tuple of float
        Within the image.
    clipped : bool
        They were clipped to the image, or their corners were put in order.
    """

    parsed: ParsedObject
    coordinates: Coordinates
    clipped: bool


@dataclass(frozen=True, slots=True)
class FoundObjects:
    """What an answer holds of one kind; `unread` also has objects that are outside the image."""

    objects: tuple[FoundObject, ...] = ()
    unread: tuple[str, ...] = ()
    n_repeated: int = 0


class RowRecord(dict[str, list[Any]]):
    """Plain lists by column, which copies share: pandas copies ``attrs`` in each operation, 100,000 rows in 4.6 s."""

    def __deepcopy__(self, memo: object) -> RowRecord:
        return self


@dataclass(frozen=True, slots=True)
class Grounding:
    """How rows are asked for objects, and how answers become a frame of them.

    Attributes
    ----------
    kind : {"box", "point"}
        What is asked for.
    labels : tuple of tuple of str
        Of each row; empty for any object.
    constrain : bool
        Answers are constrained while they are generated.
    language : {"en", "zh"} or None
        Of prompts; None for that of the labels.
    """

    kind: Kind
    labels: tuple[Labels, ...]
    constrain: bool = False
    language: Language | None = None

    @classmethod
    def of(
        cls,
        kind: Kind,
        labels: object,
        index: pd.Index,
        config: Config,
        *,
        constrain: bool = False,
        language: Language | None = None,
    ) -> Grounding:
        """Check what is asked against the options of a call, before anything loads.

        Raises
        ------
        ConfigError
            Labels or language are invalid, see `object_labels`; or an option with `constrain`, see
            `check_constrainable`.
        MissingExtra
            llguidance is not installed.
        """
        check_language(language)
        found = cls(kind, tuple(object_labels(labels, index)), constrain, language)
        if constrain:
            check_constrainable(config)
            for some in dict.fromkeys(found.labels):
                check_constraint(object_constraint(kind, some))
        return found

    def prompts(self, cells: Sequence[object], texts: Sequence[str | None], *, is_own: bool) -> list[RowPrompt]:
        """Return each row's prompt, one for its labels unless the caller wrote `texts`; an error for several images."""
        asked = texts if is_own else [object_prompt(self.kind, some, self.language) for some in self.labels]
        return [self._prompt(*row) for row in zip(cells, asked, self.labels, strict=True)]

    def checked(self, run: Run) -> list[Result]:
        """Return results, as errors with their texts where an answer is cut, or holds something but no object."""
        system = _system(run.record)
        return [self._checked(result, system) if result.status == "ok" else result for result in run.results]

    def frame(self, results: pd.DataFrame) -> pd.DataFrame:
        """Return a row per object; ``attrs["rows"]`` says of each row what `qwenvl_kit.boxes.pictures` makes a frame.

        Parameters
        ----------
        results : DataFrame
            Of a run whose results are `checked`.
        """
        system = _system(results.attrs)
        answers = [
            _Answer.of(self.kind, system, row, labels)
            for row, labels in zip(results.to_dict("records"), self.labels, strict=True)
        ]
        frame = _objects_frame(self.kind, answers, results.index)
        asked = {"constrain": self.constrain, "language": self.language}
        frame.attrs = {**results.attrs, "rows": _rows_record(answers, results), VERBS[self.kind]: asked}
        return frame

    def found(self, run: Run, index: pd.Index) -> pd.DataFrame:
        """Return the frame of a run's objects, whose results are not `checked` yet, under the labels of its images."""
        return self.frame(result_frame(Run(self.checked(run), run.record), index))

    def _prompt(self, cell: object, text: str | None, labels: Labels) -> RowPrompt:
        if (n_images := count_images(cell)) > 1:
            return RowError(
                "generate",
                f"The row has {n_images} images, and coordinates are those of one. Pass one image per row, as "
                "df.explode(column) does.",
            )
        constraint = object_constraint(self.kind, labels) if self.constrain else None
        return None if text is None else Prompt(text, constraint=constraint)

    def _checked(self, result: Result, system: CoordinateSystem) -> Result:
        sizes = _sizes(*_SIZES_OF(result))
        if result.finish_reason != "stop":
            return truncated(result)
        if sizes is None:
            return failed_answer(
                result,
                "An earlier version stored the answer without the size of the original image. Pass another store.",
            )
        found = find_objects(result.text or "", self.kind, system, *sizes)
        if found.objects or not found.unread:
            return result
        what = "boxes" if self.kind == "box" else "points"
        shown = printable(repr(result.text), _SHOWN)
        remedy = "another prompt" if self.constrain else "constrain=True, or another prompt"
        return failed_answer(result, f"The answer holds no {what}: {shown}. Use {remedy}.")


def find_objects(text: str, kind: Kind, system: CoordinateSystem, input_size: Size, source_size: Size) -> FoundObjects:
    """Read the objects of an answer, and map them to the original image.

    Parameters
    ----------
    text : str
        The answer.
    kind : {"box", "point"}
        What to read.
    system : callable
        The coordinate system of the model's family.
    input_size, source_size : tuple of int
        ``(height, width)`` of the model's input, and of the upright original.

    Examples
    --------
    >>> from qwenvl_kit.tasks.boxes import from_input_pixels
    >>> answer = '[{"bbox_2d": [322, 238, 700, 476], "label": "cat"}, {"bbox_2d": [-5, -5, 0, 0], "label": "dog"}]'
    >>> found = find_objects(answer, "box", from_input_pixels, (476, 644), (480, 640))
    >>> [(one.coordinates, one.clipped) for one in found.objects]
    [((320.0, 240.0, 640.0, 480.0), True)]
    >>> found.unread
    ('{"bbox_2d": [-5, -5, 0, 0], "label": "dog"}',)
    """
    parsed = parse_objects(text, kind)
    clip = clip_box if kind == "box" else clip_point
    objects: list[FoundObject] = []
    outside: list[str] = []
    for one in parsed.objects:
        inside = clip(system(one.coordinates, input_size, source_size), source_size)
        if inside is None:
            outside.append(one.text)
        else:
            objects.append(FoundObject(one, *inside))
    return FoundObjects(tuple(objects), (*parsed.unread, *outside), parsed.n_repeated)


@dataclass(frozen=True, slots=True)
class _Answer:
    """The objects of a row with their scores, and the size of its original image."""

    found: FoundObjects
    scores: tuple[float, ...]
    labels: tuple[str, ...]
    size: Size | None

    @classmethod
    def of(cls, kind: Kind, system: CoordinateSystem, row: Mapping[Any, Any], asked: Labels) -> _Answer:
        """Read a row of results; of objects without a label, the only one asked for is theirs."""
        sizes = _sizes(*(row[name] for name in _SIZES))
        if not isinstance(row["text"], str) or sizes is None:
            return cls(FoundObjects(), (), (), None)
        found = find_objects(row["text"], kind, system, *sizes)
        parsed = [one.parsed for one in found.objects]
        scores = object_scores(parsed, row["text"], row.get("logprobs"))
        only = asked[0] if len(asked) == 1 else ""
        return cls(found, tuple(scores), tuple(only if one.label is None else one.label for one in parsed), sizes[1])


def _system(record: Mapping[Any, Any]) -> CoordinateSystem:
    """Return the coordinate system of the model that ran; a run that Ctrl-C tore off does not record which that was."""
    return coordinate_system(record.get("effective", {}).get("family", FAMILY))


def _sizes(*sides: Any) -> tuple[Size, Size] | None:
    """Return the sizes of the model's input and of the original image; None where a result lacks them."""
    if any(pd.isna(one) for one in sides):
        return None
    height, width, source_height, source_width = map(int, sides)
    return (height, width), (source_height, source_width)


def _objects_frame(kind: Kind, answers: Sequence[_Answer], index: pd.Index) -> pd.DataFrame:
    objects = [one for answer in answers for one in answer.found.objects]
    places = np.array([row for row, answer in enumerate(answers) for _ in answer.found.objects], dtype=np.intp)
    sizes = [answer.size or (0, 0) for answer in answers]
    names = _COLUMNS[kind]
    numbers = np.array([one.coordinates for one in objects], dtype=np.float64).reshape(len(objects), len(names))
    columns: dict[str, Any] = {
        "row": pd.Series(index.take(places).to_flat_index()),
        "label": pd.Series([label for answer in answers for label in answer.labels], dtype=_TEXT),
        **dict(zip(names, numbers.T, strict=True)),
        "score": np.array([score for answer in answers for score in answer.scores], dtype=np.float64),
        "text": pd.Series([one.parsed.text for one in objects], dtype=_TEXT),
        "clipped": np.array([one.clipped for one in objects], dtype=bool),
        "width": np.array([sizes[place][1] for place in places], dtype=np.int64),
        "height": np.array([sizes[place][0] for place in places], dtype=np.int64),
    }
    return pd.DataFrame(columns, index=pd.RangeIndex(len(objects)))


def _rows_record(answers: Sequence[_Answer], results: pd.DataFrame) -> RowRecord:
    """Return status, counts and the whole answer of each row, as plain JSON values where index labels are."""
    columns: dict[str, Any] = {
        **{name: results[name] for name in ("status", "error")},
        "n_objects": [len(answer.found.objects) for answer in answers],
        "n_unread": [len(answer.found.unread) for answer in answers],
        "n_repeated": [answer.found.n_repeated for answer in answers],
        "unread": [list(answer.found.unread) for answer in answers],
        "raw": results["text"],
        "width": results["source_width"],
        "height": results["source_height"],
    }
    rows = pd.DataFrame(columns, index=results.index)
    return RowRecord(pictures_record(rows.astype(object).where(rows.notna(), None)))
