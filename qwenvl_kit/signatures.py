"""Expand ``**options`` in signatures and docstrings, for Tab and ``?``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import TypeVar, overload

from qwenvl_kit.options import option_docs

_F = TypeVar("_F", bound=Callable[..., object])


@overload
def expand_options(function: _F) -> _F: ...
@overload
def expand_options(*, only: Collection[str]) -> Callable[[_F], _F]: ...
def expand_options(function: _F | None = None, *, only: Collection[str] | None = None) -> _F | Callable[[_F], _F]:
    """Replace ``**options`` in a function's signature by all options, and list them in its docstring.

    Parameters
    ----------
    function : callable
        The function.
    only : collection of str, optional
        Names of its options; default: all.

    Examples
    --------
    >>> @expand_options
    ... def describe(cell, **options):
    ...     '''Describe it.'''
    >>> "dtype" in inspect.signature(describe).parameters
    True
    """
    if function is None:
        return functools.partial(_expand_options, only=only)
    return _expand_options(function, only=None)


def _expand_options(function: _F, *, only: Collection[str] | None) -> _F:
    signature = inspect.signature(function, eval_str=True)
    kept = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    docs = [option for option in option_docs() if only is None or option.name in only]
    options = [
        inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=option.hint)
        for option in docs
    ]
    function.__signature__ = signature.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    lines = [f"{o.name} : {o.kind}, default {o.default!r}\n    {o.doc}" for o in docs]
    doc = inspect.cleandoc(function.__doc__ or "")
    function.__doc__ = f"{doc}\n\nOther Parameters\n----------------\n" + "\n".join(lines) + "\n"
    return function
