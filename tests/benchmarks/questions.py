"""Benchmark four questions per image, 32 tokens each."""

from contenders import Rows, make_images
from contest import Workload, main

QUESTIONS = (
    "What is in this image?",
    "Which colours are there, and where?",
    "How many things can be seen, and of which kind are they?",
    "Is it day or night?",
)


def make(share: float) -> Workload:
    n = round(8 * share)
    images = [image for image in make_images(n) for _ in QUESTIONS]
    rows = Rows(images, list(QUESTIONS) * n, [32] * len(images))
    return Workload("questions", "8 images × 4 questions, 32 tokens", rows, {"torch": 2.5, "onnx": 3.0}, share)


if __name__ == "__main__":
    raise SystemExit(main(make, 0.5))
