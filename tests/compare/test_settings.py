"""A grid holds what was asked, and refuses what cannot be meant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qwenvl_kit import ConfigError, UnknownOption
from qwenvl_kit.compare import expand


def test_every_combination_is_there_once_and_the_last_option_varies_fastest() -> None:
    grid = expand({"dtype": ["float32", "float16"], "resized_height": np.array([56, 112])}, {"batch_size": 2})

    assert [(s.config.dtype, s.config.resized_height) for s in grid] == [
        *(("float32", 56), ("float32", 112)),
        *(("float16", 56), ("float16", 112)),
    ]
    assert {s.config.batch_size for s in grid} == {2}
    assert [s.reference for s in grid] == [0, 0, 0, 0]


def test_a_reference_names_some_options_and_the_others_are_those_of_the_setting() -> None:
    grid = expand({"dtype": ["bfloat16", "float32"], "resized_height": [56, 112]}, {}, {"dtype": "float32"})

    assert [grid[s.reference].label for s in grid] == 2 * [
        "dtype=float32, resized_height=56",
        "dtype=float32, resized_height=112",
    ]


def test_repeats_count_a_seed_up_and_leave_none_alone() -> None:
    with_seed, without = expand({"seed": [7, None]}, {"do_sample": True})

    assert [with_seed.seeded(repeat).seed for repeat in range(3)] == [7, 8, 9]
    assert without.seeded(2).seed is None


@pytest.mark.parametrize(
    ("vary", "options", "reference", "said"),
    [
        ({}, {}, None, "vary is empty. Pass at least one option"),
        ({"dtype": "float32"}, {}, None, r"is not a list.*\['float32', …\]"),
        ({"dtype": []}, {}, None, "at least one value"),
        ({"batch_size": [2, 2]}, {}, None, "2 twice. Use repeats="),
        ({"dtype": ["float32"]}, {"dtype": "float16"}, None, "both as an option and in vary"),
        ({"temperature": [0.5, 1.0]}, {}, None, "do_sample=False. Pass do_sample=True"),
        ({"progress": [True, False]}, {}, None, "'progress' cannot vary"),
        ({"dtype": ["float32"]}, {}, {"top_k": 5}, "'top_k', which does not vary. Use one of: dtype"),
        ({"dtype": ["float32"]}, {}, {"dtype": "float16"}, "='float16' is not a value of the grid"),
        ({"dtype": ["float32", "float61"]}, {}, None, "dtype='float61' is invalid"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_fix(
    vary: dict[str, Any], options: Any, reference: dict[str, object] | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        expand(vary, options, reference)


def test_a_misspelt_option_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UnknownOption, match="Did you mean 'resized_height'"):
        expand({"resize_height": [56]}, {})
