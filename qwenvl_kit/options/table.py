"""The options as a table, for signatures, help texts, controls and documentation."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from qwenvl_kit.options.groups import GROUPS, Group
from qwenvl_kit.options.rules import Choice, Rule

FORMER_NAMES = {"decode": "image_decode"}
"""Former names that are accepted with a DeprecationWarning, and their current names."""

FOREIGN_NAMES = {
    "max_new_tokens": "max_caption_length",
    "max_tokens": "max_caption_length",
    "model": "model_name",
    "torch_dtype": "dtype",
    "attn_implementation": "use_flash_attention_2",
    "device": "device_map",
    "question": "prompt",
    "num_threads": "threads",
    "enforce_eager": "torch_compile",
    "max_num_seqs": "rows_in_flight",
    "api_base": "base_url",
    "api_key": "api_key_env",
}
"""Names of transformers, vLLM and openai, and the options here."""


@dataclass(frozen=True, slots=True)
class OptionDoc:
    """One row of the table.

    Attributes
    ----------
    name : str
        The keyword.
    group : str
        Name of its group's class.
    hint : object
        Its type, as annotated.
    kind : str
        Its type in words, such as ``int or None``.
    default : object
        Its default value.
    rule : Rule
        Its allowed values.
    doc : str
        Its meaning, with the allowed values of a choice.
    """

    name: str
    group: str
    hint: Any
    kind: str
    default: Any
    rule: Rule
    doc: str


@functools.cache
def option_docs() -> tuple[OptionDoc, ...]:
    """Return all options, group by group."""
    return tuple(row for group in GROUPS for row in _rows(group))


@functools.cache
def option_names() -> tuple[str, ...]:
    """Return the names of all options, group by group."""
    return tuple(name for group in GROUPS for name in names_of(group))


def names_of(group: type[Group]) -> tuple[str, ...]:
    """Return the names of a group's options."""
    return tuple(option.name for option in fields(group))  # type: ignore[arg-type]  # every group is a dataclass


def suggest(name: str, names: Sequence[str]) -> str:
    """Return a sentence with the name that `name` resembles, else with all names."""
    foreign = FOREIGN_NAMES.get(name)
    near = [foreign] if foreign in names else difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"The options are: {', '.join(names)}."


def _rows(group: type[Group]) -> list[OptionDoc]:
    hints = get_type_hints(group)
    return [
        OptionDoc(
            option.name,
            group.__name__,
            hints[option.name],
            _kind(hints[option.name]),
            option.default,
            option.metadata["rule"],
            _doc(option.metadata["doc"], option.metadata["rule"]),
        )
        for option in fields(group)  # type: ignore[arg-type]
    ]


def _doc(doc: str, rule: Rule) -> str:
    if not isinstance(rule, Choice) or all(f"`{value}`" in doc for value in rule.values):
        return doc
    values = [f"`{value}`" for value in rule.values]
    return f"{doc}: {', '.join(values[:-1])} or {values[-1]}"


def _kind(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(dict.fromkeys(_kind(part) for part in get_args(hint)))
    if get_origin(hint) is Literal:
        return "str"
    if get_origin(hint) is Mapping:
        return "dict"
    if get_origin(hint) is Sequence:
        return "list"
    return "None" if hint is NoneType else str(hint.__name__)
