"""Options of `Config` as command-line flags."""

from __future__ import annotations

import argparse
import json
from typing import Any

from qwenvl_kit.options import FORMER_NAMES, Config, OptionDoc, option_docs


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each option, such as ``--batch-size 8``."""
    group = parser.add_argument_group("options of the model and the run")
    for option in option_docs():
        _add(group, option)


def config_of(parsed: argparse.Namespace) -> Config:
    """Return the config of the passed flags."""
    given: dict[str, Any] = {
        option.name: getattr(parsed, option.name) for option in option_docs() if hasattr(parsed, option.name)
    }
    return Config(**given)


def _add(group: argparse._ArgumentGroup, option: OptionDoc) -> None:
    shown = option.doc.replace("`", "").replace("%", "%%")
    settings: dict[str, Any] = {
        "dest": option.name,
        "default": argparse.SUPPRESS,
        "help": f"{shown} [{option.default}]",
    }
    if option.kind == "bool":
        settings["action"] = argparse.BooleanOptionalAction
    else:
        settings["type"] = _READERS[option.kind]
        settings["metavar"] = option.kind.split(" ")[0].upper()
    names = (option.name, *(former for former, current in FORMER_NAMES.items() if current == option.name))
    group.add_argument(*(f"--{name.replace('_', '-')}" for name in names), **settings)


def _int_or_none(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


def _int_or_text_or_none(text: str) -> int | str | None:
    return int(text) if text.isdigit() else _text_or_none(text)


def _float_or_none(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def _text_or_none(text: str) -> str | None:
    return None if text.lower() == "none" else text


def _json_or_text(text: str) -> Any:
    if not text.lstrip().startswith("{"):
        return text
    content: dict[str, Any] = json.loads(text)
    return {int(key) if key.isdigit() else key: value for key, value in content.items()}


def _texts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _bool_or_text(text: str) -> bool | str:
    return {"true": True, "false": False}.get(text.lower(), text)


_READERS = {
    "int": int,
    "float": float,
    "str": str,
    "int or None": _int_or_none,
    "int or str or None": _int_or_text_or_none,
    "float or None": _float_or_none,
    "str or None": _text_or_none,
    "str or dict or None": _json_or_text,
    "dict or None": _json_or_text,
    "list": _texts,
    "bool or str": _bool_or_text,
}
