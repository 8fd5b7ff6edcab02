"""Each row gets a prompt of the pool by weight, and keeps it whatever other rows there are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.captions.prompt_pool import choose_prompts
from qwenvl_kit.errors import ConfigError

POOL = {"Describe it.": 3, "List its tags.": 1}
NAMES = [f"{number}.png" for number in range(2000)]


def test_shares_are_those_of_the_weights() -> None:
    chosen = choose_prompts(POOL, NAMES, seed=1)

    assert chosen.count("Describe it.") / len(NAMES) == pytest.approx(0.75, abs=0.03)  # three standard deviations


def test_another_seed_chooses_otherwise_and_the_same_seed_alike() -> None:
    assert choose_prompts(POOL, NAMES, seed=1) == choose_prompts(POOL, NAMES, seed=1)
    assert choose_prompts(POOL, NAMES, seed=1) != choose_prompts(POOL, NAMES, seed=2)
    assert choose_prompts(POOL, NAMES) == choose_prompts(POOL, NAMES, seed=0)


@given(st.permutations(NAMES[:12]), st.integers(1, 12))
def test_a_rows_prompt_does_not_depend_on_other_rows(order: list[str], n_rows: int) -> None:
    alone = dict(zip(NAMES[:12], choose_prompts(POOL, NAMES[:12], seed=3), strict=True))

    assert choose_prompts(POOL, order[:n_rows], seed=3) == [alone[name] for name in order[:n_rows]]


def test_rows_of_one_image_get_prompts_of_their_own() -> None:
    assert len(set(choose_prompts(POOL, ["a.png"] * 50, seed=1))) == 2


def test_arrays_are_known_by_their_content() -> None:
    arrays = [np.full((2, 2, 3), level, np.uint8) for level in range(40)]

    assert choose_prompts(POOL, arrays[::-1], seed=1) == choose_prompts(POOL, arrays, seed=1)[::-1]
    assert len(set(choose_prompts(POOL, arrays, seed=1))) == 2


@pytest.mark.parametrize(
    ("pool", "told"),
    [({}, "empty"), ({"a": 0}, "above 0"), ({"a": "much"}, "above 0"), ({"": 1}, "in place of a prompt")],
)
def test_a_pool_that_says_nothing_is_refused(pool: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        choose_prompts(pool, NAMES)
