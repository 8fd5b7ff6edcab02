"""What the scores of found boxes are worth: average precision against a constant score, and calibration.

``python tests/benchmarks/box_scores.py --scenes 500`` asks for boxes in held-out scenes. It prints the average
precision by score and by a constant score, with the difference, and the expected calibration error (15 bins) at an IoU
of 0.5. Intervals are the 95 % ones of 2,000 bootstrap samples of the questions. ``--choose`` prints the same for other
ways to make a score, on scenes of the training side: this is how the present one was chosen.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from box_scenes import OPTIONS, ask
from numpy.typing import NDArray

import qwenvl_kit  # noqa: F401  # registers df.vl
from qwenvl_kit.boxes import box_metrics
from qwenvl_kit.boxes.average_precision import average_precisions
from qwenvl_kit.boxes.frame import checked
from qwenvl_kit.boxes.matching import pair
from qwenvl_kit.compare.reliability import calibration_error, calibration_interval
from qwenvl_kit.compare.statistics import bootstrap_counts
from qwenvl_kit.tasks.box_scores import object_logprobs, object_scores
from qwenvl_kit.tasks.boxes import from_input_pixels
from qwenvl_kit.tasks.grounding import find_objects

Floats = NDArray[np.float64]
LEVEL = 0.95


def mean(values: list[float]) -> float:
    """Return the arithmetic mean."""
    return math.fsum(values) / len(values)


#: Logarithms of scores, of the log-probabilities of coordinates and label.
WAYS: dict[str, Callable[[list[float], list[float]], float]] = {
    "constant": lambda _numbers, _label: 0.0,
    "label, product": lambda _numbers, label: math.fsum(label),
    "label, mean": lambda _numbers, label: mean(label),
    "label, min": lambda _numbers, label: min(label),
    "coordinates, product": lambda numbers, _label: math.fsum(numbers),
    "coordinates, mean": lambda numbers, _label: mean(numbers),
    "coordinates, min": lambda numbers, _label: min(numbers),
    "both, product": lambda numbers, label: math.fsum(numbers + label),
    "both, mean": lambda numbers, label: mean(numbers + label),
    "both, min": lambda numbers, label: min(numbers + label),
    **{
        f"label, product × coordinates, mean ^ {power}": lambda numbers, label, power=power: (
            math.fsum(label) + power * mean(numbers)
        )
        for power in (1.0, 0.5, 0.25, 0.1, 0.05, 0.02)
    },
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=500, help="each is asked four questions")
    parser.add_argument("--seed", type=int, default=80_000)
    parser.add_argument("--choose", action="store_true", help="compare ways to make a score, on the training side")
    asked = parser.parse_args()
    questions, truth = ask(asked.scenes, asked.seed, "train" if asked.choose else "heldout")
    found = detect(questions)
    kinds = {"all questions": questions.index, "for one name": questions.index[questions["named"]]}
    for name, rows in kinds.items():
        some = found[found["row"].isin(rows)].reset_index(drop=True)
        true = truth[truth["row"].isin(rows)].reset_index(drop=True)
        print(f"\n{name}: {len(rows)} questions, {len(true)} objects, {len(some)} found")
        if asked.choose:
            choose(some, true)
        else:
            report(some, true, len(questions))


def detect(questions: pd.DataFrame) -> pd.DataFrame:
    """Return the found boxes with their score, and the log-probabilities of ``coordinates`` and ``names``."""
    results = questions.vl.run("image", prompts="prompt", logprobs=0, max_caption_length=512, **OPTIONS)
    found = []
    for row, one in enumerate(results.to_dict("records")):
        sizes = (one["height"], one["width"]), (one["source_height"], one["source_width"])
        objects = find_objects(one["text"], "box", from_input_pixels, *sizes).objects
        given = [each.parsed for each in objects], one["text"], one["logprobs"]
        for each, score, logprobs in zip(objects, object_scores(*given), object_logprobs(*given) or [], strict=True):
            found.append((row, each.parsed.label, *each.coordinates, score, *logprobs))
    names = ["row", "label", "x0", "y0", "x1", "y1", "score", "coordinates", "names"]
    return pd.DataFrame(found, columns=names)


def choose(found: pd.DataFrame, truth: pd.DataFrame) -> None:
    """Print average precision and calibration error of every way to make a score."""
    print(f"  {'score':40} AP at IoU .5  .75   ECE   (AP: mean over labels; ECE: at IoU .5)")
    for name, way in WAYS.items():
        scores = [math.exp(way(*one)) for one in zip(found["coordinates"], found["names"], strict=True)]
        judged = found.assign(score=scores)
        ap = box_metrics(judged, truth).overall["ap"].tolist()
        error = calibration_error(scores, is_right(judged, truth, 0.5))
        print(f"  {name:40} {ap[0]:.4f}     {ap[1]:.4f}  {error:.3f}")


def report(found: pd.DataFrame, truth: pd.DataFrame, n_questions: int) -> None:
    """Print what the score is worth."""
    for least in (0.5, 0.75):
        kept = {"score": found, "constant": found.assign(score=1.0)}
        for name, frame in kept.items():
            row = box_metrics(frame, truth, iou=(least,), level=LEVEL).overall.iloc[0]
            show(f"AP at IoU {least}, mean over labels, {name}", row["ap"], row["ap_low"], row["ap_high"])
        by_sample = {name: samples(frame, truth, least, n_questions) for name, frame in kept.items()}
        for name, (value, drawn) in by_sample.items():
            show(f"AP at IoU {least}, one ranking, {name}", value, *ends(drawn))
        (ours, drawn), (constant, drawn_constant) = by_sample.values()
        show(f"AP at IoU {least}, one ranking, difference", ours - constant, *ends(drawn - drawn_constant))
    sure, right, rows = found["score"], is_right(found, truth, 0.5), found["row"]
    show("right at IoU 0.5", right.mean(), math.nan, math.nan)
    show("mean score", sure.mean(), math.nan, math.nan)
    show("ECE at IoU 0.5, score", calibration_error(sure, right), *calibration_interval(sure, right, rows, LEVEL))
    ones = np.ones(len(found))
    show("ECE at IoU 0.5, constant", calibration_error(ones, right), *calibration_interval(ones, right, rows, LEVEL))


def samples(found: pd.DataFrame, truth: pd.DataFrame, least: float, n_questions: int) -> tuple[float, Floats]:
    """Return the average precision of all objects in one ranking, and that of each bootstrap sample of questions."""
    right, scores, rows = is_right(found, truth, least), found["score"].to_numpy(), found["row"].to_numpy()
    n_true = np.bincount(truth["row"], minlength=n_questions)

    def measure(counts: NDArray[np.int64]) -> Floats:
        return average_precisions(right, scores, counts @ n_true, counts[:, rows])

    drawn = [measure(counts[at : at + 100]) for counts in bootstrap_counts(n_questions) for at in range(0, 2000, 100)]
    return float(measure(np.ones((1, n_questions), np.int64))[0]), np.concatenate(drawn)


def is_right(found: pd.DataFrame, truth: pd.DataFrame, least: float) -> NDArray[np.bool_]:
    """Return whether each found box has a partner."""
    partners = pair(checked(found), checked(truth), least)["partner"].to_numpy()
    right: NDArray[np.bool_] = partners >= 0
    return right


def ends(drawn: Floats) -> tuple[float, float]:
    """Return the ends of the percentile interval."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def show(name: str, value: float, low: float, high: float) -> None:
    """Print a figure with its interval."""
    interval = "" if math.isnan(low) else f"  [{low:.4f}, {high:.4f}]"
    print(f"  {name:44} {value:.4f}{interval}")


if __name__ == "__main__":
    main()
