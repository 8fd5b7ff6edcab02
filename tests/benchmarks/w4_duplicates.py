"""W4: rows that show a quarter as many distinct pictures, 64 tokens."""

from contenders import Rows, make_pictures
from contest import Workload, main


def make(share: float) -> Workload:
    n = round(16 * share)
    pictures = make_pictures(n) * 4
    rows = Rows(pictures, ["Describe this picture."] * len(pictures), [64] * len(pictures))
    title = "64 rows of 16 distinct pictures, 64 tokens"
    return Workload("w4_duplicates", title, rows, {"torch": 4.0, "onnx": 5.0}, share)


if __name__ == "__main__":
    raise SystemExit(main(make, 0.375))
