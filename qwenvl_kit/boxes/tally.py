"""Count right, found and true objects by image, and make rates of the counts, also of bootstrap samples of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qwenvl_kit.boxes.average_precision import average_precision
from qwenvl_kit.compare.statistics import bootstrap_counts

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    n_images : int
        Also those without objects.
    """

    found: Objects
    truth: Objects
    scores: NDArray[np.float64]
    right: NDArray[np.bool_]
    overlaps: NDArray[np.float64]
    n_images: int

    def row(self, labels: Sequence[int], level: float | None = None) -> dict[str, float]:
        """Return counts and rates of the objects with these labels, with bootstrap intervals where `level` is given."""
        once = np.ones((1, self.n_images), np.int64)
        counts = self._sums(once, labels)
        row = {name: float(counts[name][0]) for name in ("n_truth", "n_found", "n_right")}
        rates = self._rates(once, labels)
        if level is None:
            return row | {name: float(value[0]) for name, value in rates.items()}
        blocks = [self._rates(counts, labels) for counts in bootstrap_counts(self.n_images)]
        for name, value in rates.items():
            low, high = _interval(np.concatenate([block[name] for block in blocks]), level)
            row |= {name: float(value[0]), f"{name}_low": low, f"{name}_high": high}
        return row

    def _rates(self, counts: NDArray[np.int64], labels: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Return each rate (samples,) where each image counts so often (samples, n_images)."""
        sums = self._sums(counts, labels)
        by_label = np.array([self._average_precisions(counts, label) for label in labels])  # (labels, samples)
        is_known = ~np.isnan(by_label)
        ap = np.where(is_known, by_label, 0.0).sum(axis=0), is_known.sum(axis=0)
        return {
            "precision": _ratio(sums["n_right"], sums["n_found"]),
            "recall": _ratio(sums["n_right"], sums["n_truth"]),
            "f1": _ratio(2 * sums["n_right"], sums["n_found"] + sums["n_truth"]),
            "ap": _ratio(*ap) if len(labels) else np.full(len(counts), np.nan),
            "mean_iou": _ratio(sums["overlap"], sums["n_truth"]),
        }

    def _sums(self, counts: NDArray[np.int64], labels: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Return sums (samples,) of objects and overlaps, each image counted so often."""
        found, truth = (np.isin(objects.labels, labels) for objects in (self.found, self.truth))
        images = self.found.images[found]
        by_image: dict[str, NDArray[Any]] = {
            "n_truth": np.bincount(self.truth.images[truth], minlength=self.n_images).astype(np.float64),
            "n_found": np.bincount(images, minlength=self.n_images).astype(np.float64),
            "n_right": np.bincount(images, self.right[found], self.n_images),
            "overlap": np.bincount(images, self.overlaps[found], self.n_images),
        }
        sums: dict[str, NDArray[np.float64]] = {name: counts @ values for name, values in by_image.items()}
        return sums

    def _average_precisions(self, counts: NDArray[np.int64], label: int) -> NDArray[np.float64]:
        """Return the average precision (samples,) of one label."""
        of_label = self.found.labels == label
        right, scores = self.right[of_label], self.scores[of_label]
        true_images = self.truth.images[self.truth.labels == label]
        n_truth = counts @ np.bincount(true_images, minlength=self.n_images)
        weights = counts[:, self.found.images[of_label]]  # (samples, found objects)
        return np.array([average_precision(right, scores, n, w) for n, w in zip(n_truth, weights, strict=True)])


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)
    return found


def _interval(samples: NDArray[np.float64], level: float) -> tuple[float, float]:
    known = samples[~np.isnan(samples)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
