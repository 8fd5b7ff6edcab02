"""The panel that compares boxes or points: found at several sizes, and the truth, beside each other."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, Unpack

import ipywidgets as widgets
import pandas as pd

from qwenvl_kit.boxes.frame import checked
from qwenvl_kit.contact_sheet import contact_sheet
from qwenvl_kit.html import plain
from qwenvl_kit.options import Options
from qwenvl_kit.pipeline import Run
from qwenvl_kit.tasks.grounding import Grounding
from qwenvl_kit.tasks.grounding_prompts import object_prompt
from qwenvl_kit.widgets.controls import heights_field, read_heights
from qwenvl_kit.widgets.gallery import Pictures
from qwenvl_kit.widgets.panel import Panel
from qwenvl_kit.widgets.render import setting_label

if TYPE_CHECKING:
    from qwenvl_kit.compare import GridRun
    from qwenvl_kit.tasks.box_parser import Kind
    from qwenvl_kit.widgets.state import PanelImage, Trial

_MAX_BYTES = 300_000
_MAX_TOKENS = 1024  # an object takes about 30
_LONGEST_NAME = 100
_STYLE = {"description_width": "170px"}
_WIDE = {"width": "480px"}


class BoxCompare(Panel):
    """Compare the boxes or points that are found at several sizes, drawn beside each other, or beside a truth.

    The first size is the reference where there is no truth: each object of the others shows its IoU with it.

    Parameters
    ----------
    pictures, column, **options
        As for `Playground`. Without `prompt`, it asks for the labels as ``df.vl.detect`` does.
    labels : sequence of str, optional
        What to find; default: any object.
    heights : sequence of int or None
        Heights in pixels; None keeps the original.
    points : bool
        Find points instead of boxes.
    truth : DataFrame, optional
        True boxes, as of ``df.vl.detect``; their ``row`` is the index label of the image in `pictures`.

    Examples
    --------
    >>> from qwenvl_kit.widgets import BoxCompare
    >>> panel = BoxCompare(labels=["cat", "red car"], backend="echo")
    >>> panel.to_config().prompt
    'Detect every cat and red car in the image and output the coordinates in JSON format.'
    """

    title = "Compare boxes"
    varied = ("resized_height",)

    def __init__(
        self,
        pictures: Pictures = None,
        column: Hashable = "image",
        *,
        labels: Sequence[str] | None = None,
        heights: Sequence[int | None] = (None, 448),
        points: bool = False,
        truth: pd.DataFrame | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._kind: Kind = "point" if points else "box"
        self._given, self._labels = tuple(heights), tuple(labels or ())
        self._truth = None if truth is None else _named(checked(truth, "truth", kind="boxes"))
        self._run: GridRun | None = None
        options.setdefault("prompt", object_prompt(self._kind, self._labels, None))
        options.setdefault("max_caption_length", _MAX_TOKENS)
        if options.get("backend") != "echo" and options.get("num_beams", 1) == 1:
            options.setdefault("logprobs", 0)  # for the scores
        super().__init__(pictures, column, **options)

    def boxes(self) -> dict[str, pd.DataFrame]:
        """Return what each setting of the last run found, as of ``df.vl.detect``; empty before it."""
        trial = self._state.trial
        if trial is None or self._run is None:
            return {}
        index = pd.Index(_names(trial.images))
        grounding = Grounding(self._kind, (self._labels,) * len(index))
        found: dict[str, pd.DataFrame] = {}
        for cell in sorted(self._run.grid_cells, key=lambda cell: cell.setting):
            setting = trial.settings[cell.setting]
            run = Run(cell.results, {"effective": self._run.records[setting.label]})
            found[setting_label(setting)] = grounding.found(run, index)
        return found

    def to_html(self) -> str:
        """Return answers and boxes of the last run as HTML without a kernel, as saved in the notebook."""
        return f"{super().to_html()}{self._drawn()}"

    def _make_axes(self, options: dict[str, Any]) -> list[widgets.Widget]:
        options.pop("resized_height", None)
        self.labels_field = widgets.Text(
            value=", ".join(self._labels),
            description="labels to find",
            placeholder="any object",
            continuous_update=False,
            style=_STYLE,
            layout=_WIDE,
        )
        self.labels_field.observe(lambda _: self._on_labels(), names="value")
        self.heights_field = heights_field(self._given)
        return [self.labels_field, self.heights_field]

    def _read_axes(self) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any], int]:
        return read_heights(self.heights_field), {}, 1

    def _on_labels(self) -> None:
        """Ask for the labels of the field; a prompt of the user's own is replaced."""
        parts = (part.strip() for part in re.split("[,，、]", self.labels_field.value))
        self._labels = tuple(dict.fromkeys(filter(None, parts)))
        self._prompt.value = object_prompt(self._kind, self._labels, None)

    def _detail_view(self) -> list[widgets.Widget]:
        self.sheet = widgets.HTML()
        self.sheet.add_class("qwenvl")
        return [self.sheet]

    def _draw_detail_view(self) -> None:
        self.sheet.value = self._drawn()

    def _on_end(self, run: GridRun | None, failure: BaseException | None) -> None:
        self._run = run
        super()._on_end(run, failure)

    def _drawn(self) -> str:
        trial, found = self._state.trial, self.boxes()
        if trial is None or not found:
            return ""
        frame = pd.DataFrame({"image": pd.Series(_cells(trial), dtype=object)})
        frame.index = pd.Index(_names(trial.images))
        shown = found if self._truth is None else {"truth": _of_images(self._truth, frame.index), **found}
        config = trial.settings[0].config
        sheet = contact_sheet(frame, "image", [], n_rows=len(frame), max_bytes=_MAX_BYTES, config=config, boxes=shown)
        return sheet.html


def _names(images: Sequence[PanelImage]) -> list[str]:
    """Return a name of its own for each image; uploaded files may have equal ones."""
    names: list[str] = []
    for at, image in enumerate(images):
        names.append(image.name if image.name not in names else f"{image.name} (image {at + 1})")
    return names


def _cells(trial: Trial) -> list[object]:
    """Return the cells, with bytes that are in memory in the place of their URLs."""
    sources = [image.memo.get("source") for image in trial.images]
    return [
        source.value if source is not None and source.kind == "bytes" else image.cell
        for source, image in zip(sources, trial.images, strict=True)
    ]


def _named(objects: pd.DataFrame) -> pd.DataFrame:
    """Return true boxes under the names that a panel gives to index labels."""
    return objects.assign(row=[plain(row, _LONGEST_NAME) for row in objects["row"]])


def _of_images(truth: pd.DataFrame, names: pd.Index) -> pd.DataFrame:
    return truth[truth["row"].isin(names)]
