"""Panels that compare texts given one per line: prompts, and models."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Unpack

import ipywidgets as widgets

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.options import Options
from qwenvl_kit.widgets.gallery import Pictures
from qwenvl_kit.widgets.panel import Panel


class LineCompare(Panel):
    """Base of panels that vary an option over the lines of a text box."""

    option: str
    heading: str
    example: str

    def __init__(self, pictures: Pictures, column: Hashable, lines: Sequence[str], options: Options) -> None:
        self._given = tuple(lines)
        super().__init__(pictures, column, **options)

    def _make_axes(self, options: dict[str, Any]) -> list[widgets.Widget]:
        options.pop(self.option, None)
        self.lines_field = widgets.Textarea(
            value="\n".join(self._given),
            description=self.heading,
            rows=max(3, len(self._given)),
            continuous_update=False,
            style={"description_width": "170px"},
            layout={"width": "98%"},
        )
        return [self.lines_field]

    def _read_axes(self) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any], int]:
        tried = tuple(dict.fromkeys(line.strip() for line in self.lines_field.value.splitlines() if line.strip()))
        if not tried:
            raise ConfigError(f"There is no {self.option} to try. Enter one per line, such as {self.example}.")
        return {self.option: tried}, {}, 1


class PromptCompare(LineCompare):
    r"""Compare prompts: the answers of each beside one another, with differences from the first prompt's.

    Parameters
    ----------
    pictures, column, **options
        As for `Playground`.
    prompts : sequence of str
        Prompts, one per line of the box; the first one is the reference.

    Examples
    --------
    >>> from qwenvl_kit.widgets import PromptCompare
    >>> PromptCompare(prompts=["What is it?", "Describe it."], backend="echo").lines_field.value
    'What is it?\nDescribe it.'
    """

    title = "Compare prompts"
    varied = ("prompt",)
    option, heading, example = "prompt", "prompts, one per line", "What is it?"

    def __init__(
        self,
        pictures: Pictures = None,
        column: Hashable = "image",
        *,
        prompts: Sequence[str] = ("Describe this image.", "What is in this image?"),
        **options: Unpack[Options],
    ) -> None:
        super().__init__(pictures, column, prompts, options)


class ModelCompare(LineCompare):
    """Compare models: the answers of each. One model is loaded at a time, so each needs to fit alone.

    Parameters
    ----------
    pictures, column, **options
        As for `Playground`.
    models : sequence of str
        Values of ``model_name``, one per line of the box; the first one is the reference.

    Examples
    --------
    >>> from qwenvl_kit.widgets import ModelCompare
    >>> ModelCompare(models=["demo"], backend="echo").lines_field.value
    'demo'
    """

    title = "Compare models"
    varied = ("model_name",)
    option, heading, example = "model_name", "models, one per line", "Qwen/Qwen2.5-VL-3B-Instruct"

    def __init__(
        self,
        pictures: Pictures = None,
        column: Hashable = "image",
        *,
        models: Sequence[str],
        **options: Unpack[Options],
    ) -> None:
        super().__init__(pictures, column, models, options)
