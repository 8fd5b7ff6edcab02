"""Make labelled controls of options, and read the options back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.html import render
from qwenvl_kit.options import Choice, OptionDoc, option_docs

_STYLE = {"description_width": "170px"}
_LAYOUT = {"width": "360px"}
_RANGES: dict[str, tuple[float, float, float]] = {
    "temperature": (0.05, 5.0, 0.05),
    "top_p": (0.01, 1.0, 0.01),
    "batch_size": (1, 256, 1),
    "max_caption_length": (1, 8192, 1),
    "num_beams": (1, 16, 1),
}
_SHOWN = (
    "model_name",
    "model_path",
    "dtype",
    "use_flash_attention_2",
    "batch_size",
    "rows_in_flight",
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
    "logprobs",
    "rank",
)


@dataclass(frozen=True, slots=True)
class Controls:
    """The controls of a panel.

    Attributes
    ----------
    box : Widget
        The widget that contains them.
    by_name : dict
        Controls by option name.
    """

    box: widgets.Widget
    by_name: dict[str, Any]
    _given: Mapping[str, Any]

    def read(self) -> dict[str, Any]:
        """Return the given options, and those whose control differs from the default."""
        docs = {option.name: option for option in option_docs()}
        asked = dict(self._given)
        for name, control in self.by_name.items():
            value = _value(docs[name], control.value)
            if name in asked or value != docs[name].default:
                asked[name] = value
        return asked

    def lock(self, locked: bool) -> None:
        """Disable the controls during a run."""
        for control in self.by_name.values():
            control.disabled = locked


def make_controls(given: Mapping[str, Any], hidden: tuple[str, ...] = ()) -> Controls:
    """Make a control for each shown option but those in `hidden`.

    Parameters
    ----------
    given : mapping
        Options passed to the panel; options without a control are kept unchanged.
    hidden : tuple of str
        Options with controls of the panel's own.
    """
    docs = {option.name: option for option in option_docs()}
    by_name = {name: _control(docs[name], given.get(name, docs[name].default)) for name in _SHOWN if name not in hidden}
    box = widgets.Box(list(by_name.values()), layout={"flex_flow": "row wrap"})
    return Controls(box, by_name, dict(given))


def heights_field(heights: Sequence[int | None]) -> widgets.Text:
    """Return a field for the heights to compare; None keeps the original."""
    return widgets.Text(
        value=", ".join("original" if height is None else str(height) for height in heights),
        description="heights in pixels",
        continuous_update=False,
        style=_STYLE,
        layout={"width": "480px"},
    )


def read_heights(field: widgets.Text) -> dict[str, tuple[Any, ...]]:
    """Return the varied option of a field of heights.

    Raises
    ------
    ConfigError
        It is empty, or has something else than integers and ``original``.

    Examples
    --------
    >>> read_heights(heights_field([None, 448]))
    {'resized_height': (None, 448)}
    """
    tried = numbers(field.value, "resized_height", int)
    if not tried:
        raise ConfigError("No height is given. Enter integers or original, such as 56, 112, original.")
    return {"resized_height": tried}


def numbers(text: str, name: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """Parse numbers with commas or spaces between; ``original`` is None.

    Examples
    --------
    >>> numbers("56, 112 original", "resized_height", int)
    (56, 112, None)

    Raises
    ------
    ConfigError
        A part is not a number.
    """
    found: list[Any] = []
    for part in text.replace(",", " ").replace("，", " ").split():
        if part.lower() in ("original", "none"):
            found.append(None)
            continue
        try:
            found.append(kind(part))
        except ValueError:
            kinds = "integers" if kind is int else "numbers"
            message = f"{name} contains {part!r}. Enter {kinds} with commas between, such as 56, 112."
            raise ConfigError(message) from None
    return tuple(dict.fromkeys(found))


def _control(option: OptionDoc, value: Any) -> Any:
    # As a title of the label: ipywidgets drops the tooltip of texts, drop-downs and check boxes.
    label = str(render("<span title='{{ doc }}'>{{ name }}</span>", doc=option.doc, name=option.name))
    shared = {"description": label, "description_allow_html": True, "style": _STYLE, "layout": _LAYOUT}
    if isinstance(option.rule, Choice):
        return widgets.Dropdown(options=option.rule.values, value=value, **shared)
    if option.kind == "bool":
        return widgets.Checkbox(value=value, indent=True, **shared)
    if option.name in _RANGES:
        least, most, step = _RANGES[option.name]
        make = widgets.FloatSlider if option.kind == "float" else widgets.BoundedIntText
        return make(value=value, min=least, max=max(most, value), step=step, **shared)
    shown = "" if value is None else str(value)
    return widgets.Text(value=shown, placeholder="None", continuous_update=False, **shared)


def _value(option: OptionDoc, value: Any) -> Any:
    """Return a control's value as the option's; text that is not a number stays text, which `Config` rejects."""
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
