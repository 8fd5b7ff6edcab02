"""W2: four questions about each picture, 32 tokens each."""

from contenders import Rows, make_pictures
from contest import Workload, main

QUESTIONS = (
    "What is in this picture?",
    "Which colours are there, and where?",
    "How many things can be seen, and of which kind are they?",
    "Is it day or night?",
)


def make(share: float) -> Workload:
    n = round(8 * share)
    pictures = [picture for picture in make_pictures(n) for _ in QUESTIONS]
    rows = Rows(pictures, list(QUESTIONS) * n, [32] * len(pictures))
    return Workload("w2_questions", "8 pictures × 4 questions, 32 tokens", rows, {"torch": 2.5, "onnx": 3.0}, share)


if __name__ == "__main__":
    raise SystemExit(main(make, 0.5))
