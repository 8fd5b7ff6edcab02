"""Benchmark captions of distinct 448-pixel images, 64 tokens each."""

from contenders import Rows, make_images
from contest import Workload, main


def make(share: float) -> Workload:
    n = round(16 * share)
    rows = Rows(make_images(n), ["Describe this picture."] * n, [64] * n)
    return Workload("captions", "16 distinct images, 448 px, 64 tokens", rows, {"torch": 1.3, "onnx": 1.6}, share)


if __name__ == "__main__":
    raise SystemExit(main(make, 1.0))
