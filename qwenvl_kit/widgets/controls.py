"""Options in, labelled controls out, and what people set in them back as options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.options import OptionDoc, option_docs

_STYLE = {"description_width": "170px"}
_LAYOUT = {"width": "360px"}
_RANGES: dict[str, tuple[float, float, float]] = {
    "temperature": (0.05, 5.0, 0.05),
    "top_p": (0.01, 1.0, 0.01),
    "batch_size": (1, 256, 1),
    "max_caption_length": (1, 8192, 1),
    "num_beams": (1, 16, 1),
}
_CHOICES = {"dtype": ("bfloat16", "float16", "float32"), "decode": ("exact", "draft")}
_SHOWN = (
    "model_name",
    "model_path",
    "dtype",
    "use_flash_attention_2",
    "batch_size",
    "max_caption_length",
    "resized_height",
    "resized_width",
    "min_pixels",
    "max_pixels",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "num_beams",
    "repetition_penalty",
    "rank",
)


@dataclass(frozen=True, slots=True)
class Controls:
    """The controls of a panel.

    Attributes
    ----------
    box : Widget
        All of them, to be shown.
    by_name : dict
        Each by its option's name.
    """

    box: widgets.Widget
    by_name: dict[str, Any]
    _given: Mapping[str, Any]

    def read(self) -> dict[str, Any]:
        """The options that were given, or that people set to something else than the default."""
        docs = {option.name: option for option in option_docs()}
        asked = dict(self._given)
        for name, control in self.by_name.items():
            value = _value(docs[name], control.value)
            if name in asked or value != docs[name].default:
                asked[name] = value
        return asked

    def lock(self, locked: bool) -> None:
        """Keep them as they are while a run is at work."""
        for control in self.by_name.values():
            control.disabled = locked


def make_controls(given: Mapping[str, Any], hidden: tuple[str, ...] = ()) -> Controls:
    """Make a control for each option that people turn; those in `hidden` are the panel's own.

    Parameters
    ----------
    given : mapping
        Options passed to the panel; ones without a control travel along as they are.
    hidden : tuple of str
        Options that get no control here.
    """
    docs = {option.name: option for option in option_docs()}
    by_name = {name: _control(docs[name], given.get(name, docs[name].default)) for name in _SHOWN if name not in hidden}
    box = widgets.Box(list(by_name.values()), layout={"flex_flow": "row wrap"})
    return Controls(box, by_name, dict(given))


def numbers(text: str, name: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """Read a list of numbers as people write them: commas or spaces between, ``original`` for None.

    Examples
    --------
    >>> numbers("56, 112 original", "resized_height", int)
    (56, 112, None)

    Raises
    ------
    ConfigError
        Something there is no such number.
    """
    found: list[Any] = []
    for part in text.replace(",", " ").replace("，", " ").split():
        if part.lower() in ("original", "none"):
            found.append(None)
            continue
        try:
            found.append(kind(part))
        except ValueError:
            whole = "whole numbers" if kind is int else "numbers"
            raise ConfigError(f"{name} must be {whole} with commas between; got {part!r}; write 56, 112") from None
    return tuple(dict.fromkeys(found))


def _control(option: OptionDoc, value: Any) -> Any:
    shared = {"description": option.name, "tooltip": option.doc, "style": _STYLE, "layout": _LAYOUT}
    if option.name in _CHOICES:
        return widgets.Dropdown(options=_CHOICES[option.name], value=value, **shared)
    if option.kind == "bool":
        return widgets.Checkbox(value=value, indent=True, **shared)
    if option.name in _RANGES:
        least, most, step = _RANGES[option.name]
        make = widgets.FloatSlider if option.kind == "float" else widgets.BoundedIntText
        return make(value=value, min=least, max=max(most, value), step=step, **shared)
    shown = "" if value is None else str(value)
    return widgets.Text(value=shown, placeholder="None", continuous_update=False, **shared)


def _value(option: OptionDoc, value: Any) -> Any:
    """What a control holds as the option's value; what cannot be read goes on as text, for `Config` to refuse."""
    if not isinstance(value, str) or option.kind == "str":
        return round(value, 6) if isinstance(value, float) else value  # sliders add steps up: 1.0000000000000002
    text = value.strip()
    if text == "" or text.lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
