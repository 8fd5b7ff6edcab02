"""W1: distinct pictures of 448 pixels, a caption of 64 tokens each."""

from contenders import Rows, make_pictures
from contest import Workload, main


def make(full: bool) -> Workload:
    pictures = make_pictures(16)
    rows = Rows(pictures, ["Describe this picture."] * 16, [64] * 16)
    return Workload("w1_captions", "16 distinct pictures, 448 px, 64 tokens", rows, {"torch": 1.3, "onnx": 1.6})


if __name__ == "__main__":
    raise SystemExit(main(make))
