"""Judge found boxes or points against true boxes: precision, recall, F1, average precision and mean overlap."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from qwenvl_kit.boxes.frame import checked, has_record, kind_of, label_order, picture_labels, pictures
from qwenvl_kit.boxes.matching import pair
from qwenvl_kit.boxes.tally import RATES, Objects, Tally
from qwenvl_kit.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rows = dict[Hashable, dict[str, float]]
_COUNTS = ("n_truth", "n_found", "n_right")
_ANY = "any label"


@dataclass(frozen=True, slots=True, eq=False)
class BoxMetrics:
    """What `box_metrics` returns.

    Attributes
    ----------
    overall : DataFrame
        A row per IoU (``"inside"`` for points): ``n_truth``, ``n_found``, ``n_right``, ``precision``, ``recall`` and
        ``f1`` of all objects together, ``ap`` as the mean over labels that the truth has, and for boxes ``mean_iou``.
    by_label : DataFrame
        The same for each label, indexed by label and IoU.
    pairs : DataFrame
        Each found object with its true one, then each missed object: ``row``, ``label``, ``score``, ``iou``, and the
        positions ``found`` and ``truth`` in the two frames, -1 where there is none. Any overlap pairs two objects.
    n_images, n_failed : int
        Images judged, and those among them whose run failed; their true objects count as missed.
    """

    overall: pd.DataFrame
    by_label: pd.DataFrame
    pairs: pd.DataFrame
    n_images: int
    n_failed: int

    def _repr_html_(self) -> str:
        return self.overall._repr_html_() + self.by_label._repr_html_()  # type: ignore[operator,no-any-return]


def box_metrics(
    found: pd.DataFrame,
    truth: pd.DataFrame,
    *,
    iou: Sequence[float] = (0.5, 0.75),
    match_labels: bool = True,
    level: float | None = None,
) -> BoxMetrics:
    """Judge found boxes or points against true boxes.

    Objects are paired image by image and label by label. By falling score, each found object takes the free true one
    that it overlaps most; see `match` for ties. Further objects of a true one are wrong.

    Parameters
    ----------
    found : DataFrame
        Boxes or points, as of ``df.vl.detect`` and ``df.vl.point``. A point is right inside a true box of its label.
    truth : DataFrame
        True boxes of the same images: ``row``, ``label``, ``x0``, ``y0``, ``x1`` and ``y1``. Where both frames record
        their images (in ``attrs``), the images of both are judged, also those without objects. Otherwise a found object
        in an image without true ones is wrong.
    iou : sequence of float
        Smallest intersection over union of a right object, each in (0, 1]; unused for points.
    match_labels : bool
        False judges the places alone, as if all labels were one.
    level : float, optional
        Add the bootstrap interval over images of each rate, such as ``f1_low`` and ``f1_high``. In (0, 1).

    Returns
    -------
    BoxMetrics
        A rate without a denominator is NaN. ``ap`` is COCO's, interpolated at 101 recalls; see `average_precision`.
        ``mean_iou`` is the mean over true objects of the overlap with the found one; a missed object counts as 0.

    Raises
    ------
    ConfigError
        A frame has other columns or values, or `iou` or `level` is out of range.

    Examples
    --------
    >>> truth = pd.DataFrame({"row": [0, 0], "label": "cat", "x0": [0, 50], "y0": 0, "x1": [40, 90], "y1": 40})
    >>> found = truth.head(1).assign(x1=36, score=0.9)
    >>> box_metrics(found, truth).overall.round(2)[["precision", "recall", "f1", "ap", "mean_iou"]]
          precision  recall    f1   ap  mean_iou
    iou
    0.50        1.0     0.5  0.67  0.5      0.45
    0.75        1.0     0.5  0.67  0.5      0.45
    """
    if not iou or not all(0 < one <= 1 for one in iou):
        raise ConfigError(f"iou={iou!r} is invalid. Pass numbers above 0, at most 1, such as (0.5, 0.75).")
    if level is not None and not 0 < level < 1:
        raise ConfigError(f"level must be between 0 and 1; got {level!r}. Pass 0.95 for 95 % intervals.")
    some, true = checked(found, "found"), checked(truth, "truth", kind="boxes")
    images = _judged_images(found, truth)
    some, true = _placed(some, images), _placed(true, images)
    if not match_labels:
        some, true = some.assign(label=_ANY), true.assign(label=_ANY)
    labels = list(dict.fromkeys([*label_order(true), *label_order(some)]))
    is_box = kind_of(some) == "boxes"
    touching = pair(some, true, 0.0)
    overlaps = touching["iou"].to_numpy() if is_box else np.full(len(some), np.nan)
    least: dict[Hashable, float] = {one: one for one in iou} if is_box else {"inside": 1.0}
    rates = {
        name: Tally(
            _objects(some, labels),
            _objects(true, labels),
            some["score"].to_numpy(),
            pair(some, true, one)["partner"].to_numpy() >= 0,
            overlaps,
            len(images),
            len(labels),
        ).rates(level)
        for name, one in least.items()
    }
    overall: Rows = {name: of_all for name, (of_all, _) in rates.items()}
    by_label: Rows = {
        (label, name): of_labels[at] for at, label in enumerate(labels) for name, (_, of_labels) in rates.items()
    }
    return BoxMetrics(
        _table(overall, ["iou"], is_box=is_box),
        _table(by_label, ["label", "iou"], is_box=is_box),
        _pairs(some, true, touching["partner"].to_numpy(), overlaps),
        len(images),
        int((pictures(found).reindex(images)["status"] == "error").sum()),
    )


def _judged_images(found: pd.DataFrame, truth: pd.DataFrame) -> list[Hashable]:
    images = picture_labels(found, truth)
    for one in (found, truth):
        if has_record(one):
            known = set(pictures(one).index)
            images = [label for label in images if label in known]
    return images


def _placed(objects: pd.DataFrame, images: list[Hashable]) -> pd.DataFrame:
    """Return the objects of these images, with the position of each one's image; the index stays."""
    position = {label: at for at, label in enumerate(images)}
    at = np.array([position.get(row, -1) for row in objects["row"].tolist()], np.intp)
    return objects.assign(image=at)[at >= 0]


def _objects(objects: pd.DataFrame, labels: Sequence[str]) -> Objects:
    position = {label: at for at, label in enumerate(labels)}
    return Objects(
        objects["image"].to_numpy(np.intp), np.array([position[one] for one in objects["label"].tolist()], np.intp)
    )


def _table(rows: Rows, names: list[str], *, is_box: bool) -> pd.DataFrame:
    keys = [key if isinstance(key, tuple) else (key,) for key in rows]
    index = pd.MultiIndex.from_tuples(keys, names=names) if keys else pd.MultiIndex.from_arrays([[]] * len(names))
    table = pd.DataFrame(list(rows.values()), index=index if len(names) > 1 else index.get_level_values(0))
    ordered = [*_COUNTS, *(f"{name}{end}" for name in RATES for end in ("", "_low", "_high"))]
    kept = [name for name in ordered if name in table and (is_box or not name.startswith("mean_iou"))]
    return table[kept].astype({name: "int64" for name in _COUNTS if name in table})


def _pairs(
    found: pd.DataFrame, truth: pd.DataFrame, partners: NDArray[np.intp], overlaps: NDArray[np.float64]
) -> pd.DataFrame:
    """Return found objects and missed ones, with their positions in the caller's frames."""
    has_partner = partners >= 0
    true_at = np.full(len(found), -1)
    true_at[has_partner] = truth.index.to_numpy()[partners[has_partner]]
    of_found = found[["row", "label", "score"]].assign(iou=overlaps, found=found.index, truth=true_at)
    missed = truth[~truth.index.isin(true_at)]
    of_missed = missed[["row", "label"]].assign(score=np.nan, iou=0.0, found=-1, truth=missed.index)
    return pd.concat([of_found, of_missed], ignore_index=True)
