"""Count right, found and true objects by image, and make rates of the counts, also of bootstrap samples of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qwenvl_kit.boxes.average_precision import average_precisions
from qwenvl_kit.compare.statistics import bootstrap_counts

if TYPE_CHECKING:
    from numpy.typing import NDArray

RATES = ("precision", "recall", "f1", "ap", "mean_iou")
_MAX_WEIGHTS = 1_000_000  # numbers in memory at a time


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """Objects as arrays (n,).

    Attributes
    ----------
    images, labels : array of int
        Position of each object's image, and of its label.
    """

    images: NDArray[np.intp]
    labels: NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Found and true objects under one criterion.

    Attributes
    ----------
    found, truth : Objects
        The objects of all images.
    scores : array of float64 (n_found,)
        NaN without a score.
    right : array of bool (n_found,)
        Whether a found object has a partner.
    overlaps : array of float64 (n_found,)
        Overlap with the true object that it touches; 0 without one, NaN of points.
    n_images, n_labels : int
        Also images without objects.
    """

    found: Objects
    truth: Objects
    scores: NDArray[np.float64]
    right: NDArray[np.bool_]
    overlaps: NDArray[np.float64]
    n_images: int
    n_labels: int

    def rates(self, level: float | None = None) -> tuple[dict[str, float], list[dict[str, float]]]:
        """Return counts and rates of all objects together and of each label, with intervals where `level` is given."""
        once = np.ones((1, self.n_images), np.int64)
        known = self._samples(once)
        samples = (
            known if level is None else _joined([self._samples(counts) for counts in bootstrap_counts(self.n_images)])
        )
        rows = [
            {name: float(value[0, at]) for name, value in known.items()}
            | ({} if level is None else _intervals({name: value[:, at] for name, value in samples.items()}, level))
            for at in range(self.n_labels + 1)
        ]
        return rows[-1], rows[:-1]

    def _samples(self, counts: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        """Return counts and rates where each image counts so often (samples, n_images).

        Returns
        -------
        dict of array (samples, n_labels + 1)
            The last column is all labels together.
        """
        n_truth, n_found, n_right, overlap = (
            _with_sum(counts @ self._by_image(objects, values))
            for objects, values in (
                (self.truth, None),
                (self.found, None),
                (self.found, self.right),
                (self.found, self.overlaps),
            )
        )
        return {
            "n_truth": n_truth,
            "n_found": n_found,
            "n_right": n_right,
            "precision": _ratio(n_right, n_found),
            "recall": _ratio(n_right, n_truth),
            "f1": _ratio(2 * n_right, n_found + n_truth),
            "ap": self._average_precisions(counts, n_truth),
            "mean_iou": _ratio(overlap, n_truth),
        }

    def _by_image(self, objects: Objects, values: NDArray[Any] | None) -> NDArray[np.float64]:
        """Return the number of objects, or the sum of their values, of each image and label (n_images, n_labels)."""
        places = objects.images * self.n_labels + objects.labels
        sums = np.bincount(places, values, self.n_images * self.n_labels)
        return sums.reshape(self.n_images, self.n_labels).astype(np.float64)

    def _average_precisions(self, counts: NDArray[np.int64], n_truth: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the average precision of each label, and their mean (samples, n_labels + 1)."""
        found = np.full(n_truth.shape, np.nan)
        for label in range(self.n_labels):
            places = np.flatnonzero(self.found.labels == label)
            n_at_once = max(1, _MAX_WEIGHTS // max(1, len(places)))
            for start in range(0, len(counts), n_at_once):
                some = slice(start, start + n_at_once)
                weights = counts[some, self.found.images[places]]
                found[some, label] = average_precisions(
                    self.right[places], self.scores[places], n_truth[some, label], weights
                )
        is_known = ~np.isnan(found[:, :-1])
        found[:, -1] = _ratio(np.where(is_known, found[:, :-1], 0.0).sum(axis=1), is_known.sum(axis=1))
        return found


def _with_sum(by_label: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.hstack([by_label, by_label.sum(axis=1, keepdims=True)])


def _ratio(part: NDArray[np.float64], whole: NDArray[Any]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
    return found


def _joined(blocks: Sequence[dict[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    return {name: np.concatenate([block[name] for block in blocks]) for name in (blocks[0] if blocks else ())}


def _intervals(samples: dict[str, NDArray[np.float64]], level: float) -> dict[str, float]:
    """Return the ends of each rate's interval, NaN where no sample has the rate."""
    ends: dict[str, float] = {}
    for name in RATES:
        known = samples[name][~np.isnan(samples[name])]
        shares = [(1 - level) / 2, (1 + level) / 2]
        low, high = np.quantile(known, shares) if len(known) else (np.nan, np.nan)
        ends |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return ends
