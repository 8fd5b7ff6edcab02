"""Bodies of requests are JSON with the images in their places, whatever a prompt contains."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qwenvl_kit.openai_backend.request import body_of, constraint_fields, data_url
from qwenvl_kit.openai_backend.results import matches
from qwenvl_kit.openai_backend.server import Server
from qwenvl_kit.types import Constraint, LoadedImage


def loaded(level: int) -> LoadedImage:
    return LoadedImage(np.full((28, 56, 3), level, np.uint8), str(level), (28, 56))


@given(prompt=st.text(st.characters(exclude_categories=["Cs"])), levels=st.lists(st.integers(0, 255), max_size=4))
def test_a_body_is_json_with_each_image_in_its_place(prompt: str, levels: list[int]) -> None:
    body = json.loads(b"".join(body_of("m", {"max_tokens": 3}, prompt, None, [loaded(one) for one in levels])))

    *shown, text = body["messages"][0]["content"]
    urls = [one["image_url"]["url"] for one in shown]
    seen = [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]
    assert text == {"type": "text", "text": prompt}
    assert [int(one[0, 0, 0]) for one in seen] == levels
    assert body["max_tokens"] == 3


@pytest.mark.parametrize("encoding", ["png", "jpeg"])
def test_png_keeps_every_pixel_and_jpeg_nearly(encoding: str) -> None:
    ramp = np.linspace(0, 255, 56).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (28, 1))] * 3, axis=-1)
    head, file = data_url(pixels, encoding)

    assert head == f"data:image/{encoding};base64,".encode()
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(file))))
    assert np.abs(seen.astype(int) - pixels).max() <= (0 if encoding == "png" else 8)


@given(choices=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=4, unique=True))
def test_choices_as_a_pattern_match_themselves(choices: list[str]) -> None:
    pattern = constraint_fields(Constraint("choices", json.dumps(choices)))["regex"]

    assert all(re.fullmatch(pattern, choice, re.DOTALL) for choice in choices)
    assert re.fullmatch(pattern, f"{max(choices, key=len)}!") is None


@pytest.mark.parametrize(
    ("constraint", "text", "fits"),
    [
        (Constraint("regex", r"\d+ 个"), "12 个", True),
        (Constraint("regex", r"\d+ 个"), "12", False),
        (Constraint("regex", r"\d+"), "a", False),
        (Constraint("choices", '["a", "b"]'), "b", True),
        (Constraint("choices", '["a", "b"]'), "c", False),
        (Constraint("json", "{}"), '{"a": 1}', True),
        (Constraint("json", "{}"), "well: {", False),
    ],
)
def test_answers_are_held_to_their_form(constraint: Constraint, text: str, fits: bool) -> None:
    assert matches(constraint, text) == fits


@given(text=st.text(max_size=300), placed=st.booleans())
def test_quoted_words_never_hold_the_key(text: Any, placed: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "sk-marked-0123456789")
        quoted = Server("http://h/v1").quote(f"{text}sk-marked-0123456789{text}" if placed else text)

    assert "sk-marked-0123456789" not in quoted
