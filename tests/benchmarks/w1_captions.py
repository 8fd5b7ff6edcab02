"""W1: distinct pictures of 448 pixels, a caption of 64 tokens each."""

from contenders import Rows, make_pictures
from contest import Workload, main


def make(share: float) -> Workload:
    n = round(16 * share)
    rows = Rows(make_pictures(n), ["Describe this picture."] * n, [64] * n)
    return Workload("w1_captions", "16 distinct pictures, 448 px, 64 tokens", rows, {"torch": 1.3, "onnx": 1.6}, share)


if __name__ == "__main__":
    raise SystemExit(main(make, 1.0))
