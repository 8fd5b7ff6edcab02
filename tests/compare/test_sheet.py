"""What a reader of ``found.show()`` sees."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.fake_backends import gray

from qwenvl_kit import ConfigError
from qwenvl_kit.compare import Comparison
from qwenvl_kit.compare.sheet import ComparisonSheet


def comparison(texts: dict[int, list[str | None]], truth: list[str] | None = None) -> Comparison:
    """Return a comparison of heights with these answers, the first height being the reference."""
    first = next(iter(texts.values()))
    rows = [
        {
            "resized_height": height,
            "repeat": 0,
            "row": row,
            "status": "ok" if text is not None else "error",
            "stage": None if text is not None else "fetch",
            "error": None if text is not None else "HTTP status 404",
            "text": text,
            "same": pd.NA if text is None or first[row] is None else text == first[row],
            **({} if truth is None else {"truth": truth[row], "right": text == truth[row]}),
        }
        for height, answers in texts.items()
        for row, text in enumerate(answers)
    ]
    frame = pd.DataFrame(rows).astype({"resized_height": "Int64", "same": "boolean"})
    images = pd.Series([gray(level) for level in range(len(first))], index=[f"i{at}" for at in range(len(first))])
    return Comparison(frame, ("resized_height",), {"resized_height": next(iter(texts))}, True, {}, images)


def read(sheet: ComparisonSheet) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", re.sub("<style>.*?</style>", "", sheet.html, flags=re.S)))


ANSWERS: dict[int, list[str | None]] = {
    112: ["a large red ring", "a star", "a heart", None],
    56: ["a large red heart", "a star", None, None],
}


def test_an_image_stands_beside_its_answers_with_the_differences_marked() -> None:
    sheet = comparison(ANSWERS).show()

    assert sheet.html.count("<img") == 4
    assert "a large red [−ring] [+heart]" in read(sheet)
    assert "⚠ fetch: HTTP status 404" in read(sheet)
    assert "resized_height=56 1 of 2 equal" in read(sheet)
    assert (sheet.n_shown, sheet.n_images) == (4, 4)


def test_only_images_with_differences_or_wrong_answers_are_shown() -> None:
    found = comparison(ANSWERS, truth=["a large red ring", "a circle", "a heart", "a square"])

    assert found.show("differs").n_images == 1
    wrong = found.show("wrong")
    assert wrong.n_images == 4
    assert "i1 a circle ✗ a star" in read(wrong)
    assert "✓ a large red ring" in read(wrong)


def test_pages_follow_one_another_and_a_full_page_says_so() -> None:
    found = comparison({28: [f"answer {row}" for row in range(5)]})

    assert [found.show(page=page, n_images=2).n_shown for page in (1, 2, 3, 4)] == [2, 2, 1, 0]
    assert "answer 4" in read(found.show(page=3, n_images=2))
    assert "page 3 of 3" in read(found.show(page=3, n_images=2))
    assert "limit of 2000 bytes" in read(found.show(max_bytes=2000))


def test_scripts_in_answers_labels_and_truths_stay_text() -> None:
    evil = "<script>alert(1)</script>"
    found = comparison({28: [evil], 56: [f"{evil} again"]}, truth=[evil])
    assert found.images is not None
    found.images.index = pd.Index([evil])

    assert "<script" not in found.show().html
    assert "&lt;script&gt;" in found.show().html


def test_equal_answers_of_repeats_are_counted_not_repeated() -> None:
    df = pd.DataFrame({"image": [np.zeros((56, 56, 3), np.uint8)]})
    found = df.vl.compare("image", vary={"max_caption_length": [8]}, repeats=3, backend="echo", progress=False)

    assert "× 3" in read(found.show())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"only": "some"}, "only='some' is invalid. Use 'differs', 'wrong' or None."),
        ({"only": "wrong"}, "only='wrong' needs a truth"),
        ({"page": 0}, "page=0 is invalid"),
        ({"n_images": True}, "n_images=True is invalid"),
    ],
)
def test_impossible_arguments_are_told(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        comparison(ANSWERS).show(**wrong)
