"""W4: rows that show a quarter as many distinct pictures, 64 tokens."""

from contenders import Rows, make_pictures
from contest import Workload, main


def make(full: bool) -> Workload:
    n = 16 if full else 6
    pictures = make_pictures(n) * 4
    rows = Rows(pictures, ["Describe this picture."] * len(pictures), [64] * len(pictures))
    shortened = "" if full else "(24 rows of 6 pictures here, to keep the run short)"
    title = "64 rows of 16 distinct pictures, 64 tokens"
    return Workload("w4_duplicates", title, rows, {"torch": 4.0, "onnx": 5.0}, shortened)


if __name__ == "__main__":
    raise SystemExit(main(make))
