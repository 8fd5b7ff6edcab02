"""Benchmark answers of 4 to 128 tokens mixed, with one limit per row."""

import numpy as np
from contenders import Rows, make_images
from contest import Workload, main


def make(share: float) -> Workload:
    n = round(32 * share)
    limits = np.random.default_rng(0).permutation(np.geomspace(4, 128, n).round().astype(int)).tolist()
    rows = Rows(make_images(n), ["Describe this picture."] * n, limits)
    title = "32 images, answers of 4 to 128 tokens mixed"
    return Workload("lengths", title, rows, {"torch": 1.6, "onnx": 2.0}, share)


if __name__ == "__main__":
    raise SystemExit(main(make, 0.5))
