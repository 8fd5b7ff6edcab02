"""Compare settings on the rows of a column: free answers, one of some labels, or the objects that are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

import pandas as pd

from qwenvl_kit.boxes.compared import CellObjects, ComparedObjects
from qwenvl_kit.boxes.frame import TWICE, checked, pictures
from qwenvl_kit.compare import Comparison, GridRun, Setting, compare, expand
from qwenvl_kit.errors import ConfigError, printable
from qwenvl_kit.frame_run import check_index, remember, row_prompts, values_of
from qwenvl_kit.options import Config, Options
from qwenvl_kit.pipeline import Run
from qwenvl_kit.prompts import fill
from qwenvl_kit.results import result_frame
from qwenvl_kit.tasks.box_parser import Kind
from qwenvl_kit.tasks.classify import (
    Classification,
    Normalize,
    check_classifiable,
    check_varied,
    label_prompts,
    row_labels,
)
from qwenvl_kit.tasks.grounding import VERBS, Grounding
from qwenvl_kit.tasks.grounding_options import grounding_defaults

if TYPE_CHECKING:
    from qwenvl_kit.compare.tidy import Choose
    from qwenvl_kit.inference.backend import Control
    from qwenvl_kit.types import Result, RowPrompt


Task = Literal["detect", "point"]

_KINDS: dict[str, Kind] = {verb: kind for kind, verb in VERBS.items()}


def compare_rows(
    cells: pd.Series,
    prompts: object,
    vary: Mapping[str, Sequence[object]],
    options: Options,
    *,
    labels: object,
    normalize: Normalize,
    reference: Mapping[str, object] | None,
    truth: object,
    repeats: int,
    control: Control | None,
) -> Comparison:
    """Return the comparison of all combinations of settings on all cells; `prompts` are left out where they vary."""
    classification = Classification(normalize)
    some = None if labels is None else row_labels(values_of("labels", labels, cells.index), len(cells))
    if some is not None:
        check_varied(vary)
        for setting in expand(vary, options, reference):
            check_classifiable(setting.config)
        options = {**options, "max_caption_length": 1}
    texts, is_own = _texts(cells, prompts, vary, options)

    def prompts_of(prompt: str | None) -> Sequence[RowPrompt]:
        asked = _or_prompt(texts, prompt, len(cells))
        return asked if some is None else label_prompts(asked, some, is_own=is_own)

    return compare(
        cells,
        prompts_of,
        vary,
        options,
        reference=reference,
        truths=None if truth is None else fill(values_of("truth", truth, cells.index), None, len(cells)),
        choose=None if some is None else chooser(classification, some),
        repeats=repeats,
        control=control,
        keep=remember,
    )


def compare_objects(
    cells: pd.Series,
    prompts: object,
    vary: Mapping[str, Sequence[object]],
    options: Options,
    *,
    task: Task,
    labels: object,
    reference: Mapping[str, object] | None,
    truth: object,
    repeats: int,
    control: Control | None,
) -> Comparison:
    """Return the comparison of what all settings find; `labels` are those to find, `truth` has true boxes.

    Raises
    ------
    ConfigError
        `task`, `labels` or `truth` is invalid, or the index has labels twice.
    """
    if task not in _KINDS:
        raise ConfigError(f"task must be 'detect', 'point' or None; got {printable(repr(task), 60)}.")
    if not cells.index.is_unique:
        raise ConfigError(TWICE)
    settings = expand(vary, options, reference)
    options = {**options, **grounding_defaults([one.config for one in settings])}
    check_index("labels", labels, cells.index)
    grounding = Grounding.of(_KINDS[task], labels, cells.index, settings[0].config)
    known = None if truth is None else _asked_for(truth, grounding, cells.index)
    texts, is_own = _texts(cells, prompts, vary, options)

    def prompts_of(prompt: str | None) -> Sequence[RowPrompt]:
        return grounding.prompts(cells.tolist(), _or_prompt(texts, prompt, len(cells)), is_own=is_own)

    return compare(
        cells,
        prompts_of,
        vary,
        options,
        reference=reference,
        locate=_Locate(grounding, cells.index, known),
        repeats=repeats,
        control=control,
        keep=remember,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Locate:
    """Read the objects of a grid's answers."""

    grounding: Grounding
    index: pd.Index
    truth: pd.DataFrame | None

    def __call__(self, run: GridRun, settings: Sequence[Setting]) -> ComparedObjects:
        """Return the objects, and set the results to those that `Grounding` has checked."""
        found = []
        for at, cell in enumerate(run.grid_cells):
            setting = settings[cell.setting]
            done = [result for result in cell.results if result.status != "cancelled"]
            rows = [result.row for result in done]
            asked = replace(self.grounding, labels=tuple(self.grounding.labels[row] for row in rows))
            record = {"effective": run.records[setting.label]}
            checked_run = Run(asked.checked(Run(done, record)), record)
            run.grid_cells[at] = replace(cell, results=checked_run.results)
            if done:
                frame = asked.frame(result_frame(checked_run, self.index[rows]))
                named = setting.label, dict(setting.values)
                found.append(CellObjects(cell.setting, setting.reference, cell.repeat, *named, frame))
        ordered = sorted(found, key=lambda cell: (cell.setting, cell.repeat))
        return ComparedObjects(tuple(ordered), self.truth)


def _asked_for(truth: object, grounding: Grounding, index: pd.Index) -> pd.DataFrame:
    """Return the true boxes of these images with a label that is asked for.

    Raises
    ------
    ConfigError
        It has other columns or values, or no box of any of the images.
    """
    truth = cast("pd.DataFrame", truth)  # which `checked` makes sure of
    boxes = checked(truth, "truth", kind="boxes")
    labels = dict(zip(index, grounding.labels, strict=True))
    known = pictures(truth).index
    if len(known) and not known.isin(index).any():
        raise ConfigError(
            f"No row of truth belongs to this frame: {printable(repr(known[0]), 100)} is not in its index. The column "
            "row of truth holds index labels; from_coco and others take files=df[column]."
        )
    is_asked = [
        row in labels and (not labels[row] or label in labels[row])
        for row, label in zip(boxes["row"].tolist(), boxes["label"], strict=True)
    ]
    kept = boxes[is_asked].reset_index(drop=True)
    kept.attrs = dict(truth.attrs)
    return kept


def _texts(
    cells: pd.Series, prompts: object, vary: Mapping[str, Sequence[object]], options: Options
) -> tuple[list[str | None] | None, bool]:
    """Return a prompt per row, None where they vary, and whether they are the caller's own."""
    config = Config(**options)
    is_own = prompts is not None or "prompt" in vary or "prompt" in config.explicit
    return None if "prompt" in vary else row_prompts(prompts, config.prompt, cells.index), is_own


def _or_prompt(texts: list[str | None] | None, prompt: str | None, n_rows: int) -> list[str | None]:
    return [prompt] * n_rows if texts is None else texts


def chooser(classification: Classification, labels: Sequence[tuple[str, ...]]) -> Choose:
    """Return what chooses among the labels of each row, for `compare.tidy`."""

    def choose(results: Sequence[Result]) -> tuple[list[str | None], list[float | None]]:
        frame = result_frame(Run(list(results), {}), pd.RangeIndex(len(results)))
        found = classification.frame(frame, [labels[result.row] for result in results], None)
        known = found["label"].notna()
        names, shares = (found[name].astype(object).where(known, None).tolist() for name in ("label", "probability"))
        return names, shares

    return choose
