"""What Tab and ``?`` show of a door."""

from __future__ import annotations

import inspect
from typing import Any, Unpack

import pytest

from qwenvl_kit import Config
from qwenvl_kit.options import Options, option_docs
from qwenvl_kit.signatures import expand_options


@expand_options
def door(cell: object, *, control: str | None = None, **options: Unpack[Options]) -> dict[str, Any]:
    """Look at it.

    Parameters
    ----------
    cell : object
        The picture.
    """
    return dict(options)


def test_options_stand_behind_the_doors_own_parameters_with_their_defaults() -> None:
    shown = inspect.signature(door).parameters

    assert list(shown) == ["cell", "control", *(option.name for option in option_docs())]
    assert {name: shown[name].default for name in ("dtype", "top_k")} == {"dtype": "bfloat16", "top_k": 50}
    assert all(shown[option.name].kind is inspect.Parameter.KEYWORD_ONLY for option in option_docs())
    assert all(shown[option.name].annotation == option.hint for option in option_docs())


@pytest.mark.parametrize("option", option_docs(), ids=lambda option: option.name)
def test_every_option_is_documented_with_its_kind_default_and_meaning(option: Any) -> None:
    doc = inspect.getdoc(door) or ""

    assert f"\n{option.name} : {option.kind}, default {option.default!r}\n    {option.doc}\n" in doc + "\n"
    assert option.doc


def test_the_doors_own_docstring_stays_first() -> None:
    assert (door.__doc__ or "").startswith("Look at it.\n\nParameters\n")


def test_calling_passes_only_what_was_given() -> None:
    assert door("a.png", dtype="float32") == {"dtype": "float32"}
    assert Config(**door("a.png", dtype="float32")).explicit == {"dtype"}


def test_a_door_without_docstring_gets_the_options_all_the_same() -> None:
    @expand_options
    def bare(**options: object) -> None: ...

    assert "temperature : float, default 1.0" in (bare.__doc__ or "")
