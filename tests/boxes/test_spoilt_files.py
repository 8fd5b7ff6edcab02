"""A file with a wrong value anywhere is read or refused with a message, and never fails in another way."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable
from typing import Any

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenvl_kit import ConfigError
from qwenvl_kit.boxes import from_coco, from_label_studio, from_yolo, to_coco, to_label_studio

FOUND = pd.DataFrame({"row": ["a", "b"], "label": ["cat", "dog"], "x0": 1.0, "y0": 2.0, "x1": 5.0, "y1": 9.0})
FOUND = FOUND.assign(score=[0.5, 0.75], width=10, height=12)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from([[], {}, [[]], ["cat"], {"id": 1}, [1, 2, 3, 4], [None] * 4, ["1"] * 4, 10**400]),
)


def spoil(value: Any, data: st.DataObject) -> Any:
    """Replace or remove something at a random place."""
    if isinstance(value, dict | list) and value and data.draw(st.integers(0, 9)):
        key = data.draw(st.sampled_from(list(value) if isinstance(value, dict) else list(range(len(value)))))
        if not data.draw(st.integers(0, 5)):
            del value[key]
        else:
            value[key] = spoil(value[key], data)
        return value
    return data.draw(VALUES)


def read_spoilt(read: Callable[[Any], pd.DataFrame], whole: Any, data: st.DataObject) -> None:
    spoilt = spoil(copy.deepcopy(whole), data)
    if isinstance(spoilt, str):  # a path
        return
    with contextlib.suppress(ConfigError), warnings.catch_warnings(action="ignore"):
        found = read(spoilt)
        assert all(isinstance(label, str) for label in found["label"])
        assert (found["x0"] <= found["x1"]).all()


@settings(max_examples=100)
@given(data=st.data())
def test_coco(data: st.DataObject) -> None:
    read_spoilt(from_coco, to_coco(FOUND), data)


@settings(max_examples=100)
@given(data=st.data())
def test_label_studio(data: st.DataObject) -> None:
    read_spoilt(from_label_studio, to_label_studio(FOUND), data)


@given(line=st.text(st.sampled_from("0123456789.-e naif\t\u0663"), max_size=30))
def test_yolo(line: str) -> None:
    with contextlib.suppress(ConfigError):
        found = from_yolo({"a": line}, ["cat"], {"a": (10, 12)})
        assert (found["x0"] <= found["x1"]).all()
