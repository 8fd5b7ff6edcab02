"""Whether an ONNX export finds the boxes that torch finds.

``python tests/benchmarks/box_backends.py --scenes 300`` asks the embedded model for boxes in held-out scenes: on torch,
and as exports in float32, int8 and w8a8. It prints F1 at an IoU of 0.5, the answers that differ from torch's, and by
how many pixels of the original their boxes do. Exit status 1 where float32 differs by more than a pixel of the model's
input, or int8 by more than a point of F1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pandas as pd
from box_scenes import OPTIONS, ask

import qwenvl_kit
from qwenvl_kit.boxes import box_metrics, pictures
from qwenvl_kit.export import to_onnx

CORNERS = ["x0", "y0", "x1", "y1"]


def main() -> int:
    """Print a line per backend; return 1 where one misses its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300, help="each is asked four questions")
    parser.add_argument("--seed", type=int, default=80_000)
    asked = parser.parse_args()
    questions, truth = ask(asked.scenes, asked.seed)
    torch = detect(questions)
    f1 = {"torch, float32": report("torch, float32", torch, torch, truth)}
    apart = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, quantize in (("float32", None), ("int8", "int8"), ("w8a8", "w8a8")):
            model = to_onnx("demo", Path(folder) / name, quantize=quantize, verify_rows=0).path
            found = detect(questions, backend="onnx", model_name=str(model))
            f1[name] = report(f"ONNX, {name}", found, torch, truth)
            apart = furthest(found, torch) if quantize is None else apart
            qwenvl_kit.unload()
    return int(apart > 1 or f1["int8"] < f1["torch, float32"] - 0.01)


def detect(questions: pd.DataFrame, **options: object) -> pd.DataFrame:
    """Return the boxes of all questions."""
    return questions.vl.detect("image", prompts="prompt", max_caption_length=512, **{**OPTIONS, **options})


def report(name: str, found: pd.DataFrame, torch: pd.DataFrame, truth: pd.DataFrame) -> float:
    """Print what was found beside what torch found; return F1 at an IoU of 0.5."""
    judged = box_metrics(found, truth).overall
    raw, other = (pictures(one)["raw"] for one in (found, torch))
    print(
        f"{name:16} F1 {judged['f1'].loc[0.5]:.4f}, mean IoU {judged['mean_iou'].loc[0.5]:.4f}, "
        f"{(raw != other).sum()} of {len(raw)} answers differ, boxes by at most {furthest(found, torch):.1f} pixels of "
        "the model's input"
    )
    return float(judged["f1"].loc[0.5])


def furthest(found: pd.DataFrame, other: pd.DataFrame) -> float:
    """Return by how many pixels of the model's input corners differ; infinite for another list of objects."""
    keys = ["row", "label"]
    if found[keys].to_numpy().tolist() != other[keys].to_numpy().tolist():
        return float("inf")
    return float((numbers(found) - numbers(other)).abs().max(axis=None))


def numbers(found: pd.DataFrame) -> pd.DataFrame:
    """Return the coordinates that the answers have."""
    given = found["text"].str.extract(r"\[(\d+), (\d+), (\d+), (\d+)\]").astype(float)
    return given.set_axis(CORNERS, axis="columns")


if __name__ == "__main__":
    sys.exit(main())
