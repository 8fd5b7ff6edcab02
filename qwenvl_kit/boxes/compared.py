"""Judge the objects that the settings of a comparison found, against true boxes and against the reference setting."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qwenvl_kit.boxes.frame import checked, has_record, kind_of, pictures
from qwenvl_kit.boxes.matching import pair
from qwenvl_kit.boxes.metrics import box_metrics
from qwenvl_kit.compare.reliability import calibration_error, calibration_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_IOU = 0.5
"""Of a right box, where a comparison says right or wrong."""

_RATES = ("precision", "recall", "f1", "ap")


@dataclass(frozen=True, slots=True, eq=False)
class CellObjects:
    """What a setting found in one repeat.

    Attributes
    ----------
    setting, reference, repeat : int
        Positions of the setting and of the one that it is compared with, and the repeat.
    name : str
        The varied options.
    values : dict
        The same by name.
    frame : DataFrame
        As of ``df.vl.detect`` or ``df.vl.point``; its record has every finished row.
    """

    setting: int
    reference: int
    repeat: int
    name: str
    values: dict[str, Any]
    frame: pd.DataFrame


@dataclass(frozen=True, slots=True, eq=False)
class ComparedObjects:
    """The objects of a comparison, by setting and repeat, and the true boxes where they are known."""

    cells: tuple[CellObjects, ...]
    truth: pd.DataFrame | None = None

    def frames(self, repeat: int) -> dict[str, pd.DataFrame]:
        """Return what each setting found in a repeat."""
        return {cell.name: cell.frame for cell in self.cells if cell.repeat == repeat}

    def marks(self) -> pd.DataFrame:
        """Return a row per finished row of the comparison, in its order.

        Returns
        -------
        DataFrame
            ``n_objects``; and with a truth ``n_truth``, ``n_right`` (boxes at an IoU of 0.5, points inside a box),
            ``mean_iou`` over the true boxes, ``right`` (all are found, and nothing else) and ``truth``, its labels.
        """
        return pd.concat([self._marks(cell) for cell in self.cells], ignore_index=True)

    def measures(self, level: float | None) -> pd.DataFrame:
        """Return a row per setting: means over its repeats of the figures, and of the ends of their intervals."""
        by_setting = groupby(self.cells, key=lambda cell: cell.setting)
        return pd.DataFrame(
            [pd.DataFrame([self._figures(one, level) for one in some]).mean() for _, some in by_setting]
        )

    def judged(self) -> pd.DataFrame:
        """Return every object: the varied options, the position of its image's ``row``, its score as ``probability``.

        With a truth also whether it is ``right``.
        """
        return pd.concat([self._judged(cell) for cell in self.cells], ignore_index=True)

    def _marks(self, cell: CellObjects) -> pd.DataFrame:
        rows = pictures(cell.frame)
        marks = pd.DataFrame({"n_objects": rows["n_objects"].astype("Int64")})
        if self.truth is None:
            return marks
        found, true = checked(cell.frame), checked(self.truth)
        images = set(pictures(self.truth).index) if has_record(self.truth) else set(rows.index)
        is_known = rows.index.isin(list(images)) & (rows["status"] != "null_image")
        overlaps = pair(found, true, 0.0)["iou"]
        marks["n_truth"] = _sums(true["row"], np.ones(len(true)), rows.index).astype("Int64").where(is_known)
        marks["n_right"] = _sums(found["row"], self._is_right(cell), rows.index).astype("Int64").where(is_known)
        if kind_of(found) == "boxes":
            marks["mean_iou"] = _sums(found["row"], overlaps.to_numpy(), rows.index) / marks["n_truth"].replace(
                0, pd.NA
            )
        is_whole = (marks["n_right"] == marks["n_truth"]) & (marks["n_right"] == marks["n_objects"])
        marks["right"] = is_whole.where(rows["status"] == "ok").astype("boolean")
        labels = true.groupby("row", sort=False)["label"].agg(", ".join).to_dict()
        marks["truth"] = pd.Series([labels.get(row, "") for row in rows.index], rows.index).where(is_known)
        return marks

    def _figures(self, cell: CellObjects, level: float | None) -> dict[str, float]:
        figures: dict[str, float] = {}
        against = next((one for one in self.cells if (one.setting, one.repeat) == (cell.reference, cell.repeat)), None)
        if against is not None and kind_of(cell.frame) == "boxes":
            figures["same_iou"] = float(box_metrics(cell.frame, against.frame).overall["mean_iou"].iloc[0])
        if self.truth is not None:
            figures |= _rates(cell.frame, self.truth, level) | self._calibration(cell, level)
        return figures

    def _calibration(self, cell: CellObjects, level: float | None) -> dict[str, float]:
        sure, rows = checked(cell.frame)["score"], cell.frame["row"]
        if sure.isna().all():
            return {}
        right, images = self._is_right(cell), pd.factorize(rows)[0]
        figures = {"ece": calibration_error(sure, right)}
        if level is not None:
            figures["ece_low"], figures["ece_high"] = calibration_interval(sure, right, images, level)
        return figures

    def _judged(self, cell: CellObjects) -> pd.DataFrame:
        objects = checked(cell.frame)
        judged = pd.DataFrame({name: [one] * len(objects) for name, one in cell.values.items()})
        judged["row"] = pictures(cell.frame).index.get_indexer(pd.Index(objects["row"].tolist(), tupleize_cols=False))
        judged["probability"] = objects["score"]
        return judged if self.truth is None else judged.assign(right=self._is_right(cell))

    def _is_right(self, cell: CellObjects) -> NDArray[np.bool_]:
        """Return whether each object has a true one."""
        assert self.truth is not None
        least = LEAST_IOU if kind_of(cell.frame) == "boxes" else 1.0
        right: NDArray[np.bool_] = pair(checked(cell.frame), checked(self.truth), least)["partner"].to_numpy() >= 0
        return right


def _rates(found: pd.DataFrame, truth: pd.DataFrame, level: float | None) -> dict[str, float]:
    """Return the rates of `box_metrics`, such as ``f1_50`` at an IoU of 0.5, or ``f1`` of points."""
    overall = box_metrics(found, truth, level=level).overall
    figures = {name: value for at, row in overall.iterrows() for name, value in _named(at, row)}
    first = overall.iloc[0]
    return figures | {str(name): float(first.loc[str(name)]) for name in overall if str(name).startswith("mean_iou")}


def _named(at: Hashable, row: pd.Series) -> Iterator[tuple[str, float]]:
    suffix = f"_{round(100 * at)}" if isinstance(at, float) else ""
    for name in _RATES:
        for end in ("", "_low", "_high"):
            if f"{name}{end}" in row.index:
                yield f"{name}{suffix}{end}", float(row.loc[f"{name}{end}"])


def _sums(rows: pd.Series, values: NDArray[Any], index: pd.Index) -> pd.Series:
    """Return the sum of the values of each image, 0 where it has none."""
    sums = pd.Series(np.asarray(values, np.float64)).groupby(rows.to_numpy(), sort=False).sum().to_dict()
    return pd.Series([sums.get(row, 0.0) for row in index], index)
