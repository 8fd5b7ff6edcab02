"""Every option of `Config` as a flag of the command line, and back."""

from __future__ import annotations

import argparse
import json
from typing import Any

from qwenvl_kit.config import Config, OptionDoc, option_docs

_OWN = ("store",)  # has no effect here yet, or is set by the command itself


def add_options(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Add a flag for each option, such as ``--batch-size 8``; `defaults` replace those of `Config`."""
    group = parser.add_argument_group("options of the model and the run")
    for option in option_docs():
        if option.name not in _OWN:
            _add(group, option, defaults.get(option.name, option.default))
    parser.set_defaults(**{f"own_{name}": value for name, value in defaults.items()})


def config_of(parsed: argparse.Namespace) -> Config:
    """Make the `Config` that the flags ask for; what was not given stays not asked for."""
    names = {option.name for option in option_docs()}
    own = {name.removeprefix("own_"): value for name, value in vars(parsed).items() if name.startswith("own_")}
    given = {name: value for name, value in vars(parsed).items() if name in names}
    options: dict[str, Any] = {**own, **given}
    return Config(**options)


def _add(group: argparse._ArgumentGroup, option: OptionDoc, default: Any) -> None:
    shown = option.doc.replace("`", "").replace("%", "%%")
    settings: dict[str, Any] = {"dest": option.name, "default": argparse.SUPPRESS, "help": f"{shown} [{default}]"}
    if isinstance(option.default, bool):
        settings["action"] = argparse.BooleanOptionalAction
    else:
        settings["type"] = _READERS.get(option.annotation, str)
        settings["metavar"] = option.annotation.split(" ")[0].upper() if option.annotation[0].islower() else "VALUE"
    group.add_argument(f"--{option.name.replace('_', '-')}", **settings)


def _int_or_none(text: str) -> int | None:
    return None if text.lower() == "none" else int(text)


def _float_or_none(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def _text_or_none(text: str) -> str | None:
    return None if text.lower() == "none" else text


def _json_or_text(text: str) -> Any:
    if not text.lstrip().startswith("{"):
        return text
    content: dict[str, Any] = json.loads(text)
    return {int(key) if key.isdigit() else key: value for key, value in content.items()}


_READERS = {
    "int": int,
    "float": float,
    "int | None": _int_or_none,
    "float | None": _float_or_none,
    "str | None": _text_or_none,
    "DeviceMap | None": _json_or_text,
    "MaxMemory | None": _json_or_text,
}
