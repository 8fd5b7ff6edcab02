"""How right and how sure the embedded model is on held-out yes/no questions.

``python tests/benchmarks/yes_no.py --questions 1000`` prints accuracy, expected calibration error (15 bins of equal
width: Guo et al. 2017, https://arxiv.org/abs/1706.04599) and Brier score of ``classify``, each with the 95 % interval
of 2,000 bootstrap samples over questions; and how well the probability of "Yes." tells a question's own image from
another image, in which the thing is not there: the area under the ROC curve, with and without ``prior="blank"``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import qwenvl_kit  # noqa: F401  # registers df.vl
from qwenvl_kit.compare.reliability import brier_score, calibration_error
from qwenvl_kit.compare.statistics import interval_of
from qwenvl_kit.demo import draw, sample_scenes
from qwenvl_kit.demo.scenes import Scene, questions

OPTIONS: dict[str, Any] = {"model_name": "demo", "dtype": "float32", "use_flash_attention_2": False, "progress": False}
LABELS = ["Yes.", "No."]
Floats = NDArray[np.float64]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=70_000, help="of the scenes; the model was trained on others")
    asked = parser.parse_args()
    frame = ask(asked.questions, asked.seed)
    report(frame, None)
    report(frame, "blank")


def report(frame: pd.DataFrame, prior: Literal["blank"] | None) -> None:
    """Print the measures of one prior."""
    found = frame.vl.classify("image", LABELS, prompts="question", all=True, prior=prior, **OPTIONS)
    swapped = frame.vl.classify("other", LABELS, prompts="question", all=True, prior=prior, **OPTIONS)
    right = (found["label"] == frame["answer"]).to_numpy(float)
    sure, yes = found["probability"].to_numpy(), (frame["answer"] == "Yes.").to_numpy()
    p_yes, p_yes_swapped = found["Yes."].to_numpy(), swapped["Yes."].to_numpy()
    own, other = log_odds(p_yes[yes]), log_odds(p_yes_swapped[yes])
    print(f"prior={prior!r}, {len(frame)} questions")
    show("accuracy", lambda rows: float(right[rows].mean()), len(frame))
    show("ECE", lambda rows: calibration_error(sure[rows], right[rows]), len(frame))
    show("Brier score", lambda rows: brier_score(sure[rows], right[rows]), len(frame))
    show("AUROC, own against other image", lambda rows: area(own[rows], other[rows]), int(yes.sum()))


def ask(n_questions: int, seed: int) -> pd.DataFrame:
    """Return images, questions, answers, and another image without what a question asks for."""
    rng = np.random.default_rng(seed)
    scenes = sample_scenes(2 * n_questions, seed=seed)
    rows: list[tuple[Any, ...]] = []
    for at, scene in enumerate(scenes):
        for one in questions(scene, rng, "en"):
            if one.kind == "is_there" and len(rows) < n_questions:
                other = next(s for s in (*scenes[at + 1 :], *scenes) if not holds(s, one.prompt))
                rows.append((draw(scene), one.prompt, one.answer, draw(other)))
    return pd.DataFrame(rows, columns=["image", "question", "answer", "other"])


def holds(scene: Scene, question: str) -> bool:
    """Whether a scene has the object that a question asks for."""
    return any(f"{thing.colour} {thing.shape}" in question for thing in scene.things)


def show(name: str, measure: Callable[[NDArray[np.intp]], float], n_rows: int) -> None:
    """Print a measure over rows with its bootstrap interval."""
    low, high = interval_of(measure, n_rows)
    print(f"  {name:32} {measure(np.arange(n_rows)):.4f}  [{low:.4f}, {high:.4f}]")


def area(positive: Floats, negative: Floats) -> float:
    """Return the chance that a positive score exceeds a negative one, ties counted half."""
    ordered = np.sort(negative)
    below, up_to = np.searchsorted(ordered, positive, "left"), np.searchsorted(ordered, positive, "right")
    return float((below + up_to).mean() / 2 / len(negative))


def log_odds(p: Floats) -> Floats:
    """Return log p / (1 - p), which orders probabilities that round to one."""
    return np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(1 - p, 1e-300))


if __name__ == "__main__":
    main()
