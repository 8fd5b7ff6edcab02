"""Doors that take ``**options`` get them spelled out, for Tab and ``?``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

from qwenvl_kit.config import option_docs

_F = TypeVar("_F", bound=Callable[..., object])


def spell_out(function: _F) -> _F:
    """Replace ``**options`` in a function's shown signature by all options, and list them in its docstring.

    Examples
    --------
    >>> @spell_out
    ... def look(cell, **options):
    ...     '''Look at it.'''
    >>> "dtype" in inspect.signature(look).parameters
    True
    """
    signature = inspect.signature(function, eval_str=True)
    kept = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    options = [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=option.hint)
        for option in option_docs()
    ]
    function.__signature__ = signature.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    lines = [f"{o.name} : {o.kind}, default {o.default!r}\n    {o.doc}" for o in option_docs()]
    doc = inspect.cleandoc(function.__doc__ or "")
    function.__doc__ = f"{doc}\n\nOther Parameters\n----------------\n" + "\n".join(lines) + "\n"
    return function
