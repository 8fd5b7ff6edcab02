"""Benchmark 64-token captions of rows with four rows per distinct image."""

from contenders import Rows, make_images
from contest import Workload, main


def make(share: float) -> Workload:
    n = round(16 * share)
    images = make_images(n) * 4
    rows = Rows(images, ["Describe this picture."] * len(images), [64] * len(images))
    title = "64 rows of 16 distinct images, 64 tokens"
    return Workload("duplicates", title, rows, {"torch": 4.0, "onnx": 5.0}, share)


if __name__ == "__main__":
    raise SystemExit(main(make, 0.375))
