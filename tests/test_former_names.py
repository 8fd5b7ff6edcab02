"""Names of version 0.1 import with a warning, and are the objects of today."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from types import ModuleType

import pytest

from qwenvl_kit._moved import ELSEWHERE, MODULES, NAMES


def former(name: str) -> ModuleType:
    """Import a former module anew, without its submodules, of which one may have the name of a function."""
    forget(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(name)


def forget(name: str) -> None:
    for known in [known for known in sys.modules if known == name or known.startswith(f"{name}.")]:
        del sys.modules[known]


@pytest.mark.parametrize(("old", "new"), MODULES.items())
def test_a_former_module_imports_with_a_warning_and_has_the_attributes_of_its_successor(old: str, new: str) -> None:
    forget(old)
    parent = old.rpartition(".")[0]
    if parent in MODULES:
        former(parent)  # warns of its own

    with pytest.warns(DeprecationWarning, match=re.escape(f"{old} is now {new}")):
        module = importlib.import_module(old)

    successor = importlib.import_module(new)
    names = [name for name in vars(successor) if not name.startswith("_")]
    moved_on = {key.rpartition(".")[2] for key in ELSEWHERE if f"qwenvl_kit.{key}".rpartition(".")[0] == old}
    assert all(getattr(module, name) is getattr(successor, name) for name in names if name not in moved_on)


@pytest.mark.parametrize(("old", "new"), NAMES.items())
def test_a_former_name_is_the_object_of_today_in_some_former_module(old: str, new: str) -> None:
    owners = [
        module
        for module, successor in MODULES.items()
        if hasattr(importlib.import_module(successor), new) and not hasattr(importlib.import_module(successor), old)
    ]

    assert owners
    for module in owners:
        assert getattr(former(module), old) is getattr(importlib.import_module(MODULES[module]), new)


@pytest.mark.parametrize(("old", "place"), ELSEWHERE.items())
def test_a_name_that_left_its_module_is_found_where_it_is_now(old: str, place: tuple[str, str]) -> None:
    module, _, name = f"qwenvl_kit.{old}".rpartition(".")
    assert getattr(former(module), name) is getattr(importlib.import_module(f"qwenvl_kit.{place[0]}"), place[1])
