"""The panels for one setting, and for grids over dtypes and over sampling."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Unpack

import ipywidgets as widgets

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.options import Options
from qwenvl_kit.widgets.controls import numbers
from qwenvl_kit.widgets.gallery import Pictures
from qwenvl_kit.widgets.panel import Panel

DTYPES = ("float32", "bfloat16", "float16")
_WIDE = {"width": "480px"}
_STYLE = {"description_width": "170px"}


class Playground(Panel):
    """Run prompts on images, change parameters, and compare each run with the one before.

    Parameters
    ----------
    pictures : DataFrame, Series or sequence, optional
        Images to offer, at most 24; more can be uploaded.
    column : label
        Their column where `pictures` is a DataFrame.
    labels : sequence of str
        Answers to choose from, shown as bars with their probabilities; none for free answers.
    **options
        Initial options of `Config`, with ``prompt``. ``logprobs=3`` shades each token by its probability, and shows the
        three likeliest in its place.

    Raises
    ------
    ColumnNotFound
        The frame has no such column.
    ConfigError, UnknownOption
        An option is invalid or unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from qwenvl_kit.widgets import Playground
    >>> panel = Playground([np.zeros((56, 56, 3), np.uint8)], prompt="What is it?", backend="echo")
    >>> panel.run()
    >>> panel.to_frame()["status"].tolist()
    ['ok']
    """

    title = "Playground"

    def __init__(
        self,
        pictures: Pictures = None,
        column: Hashable = "image",
        *,
        labels: Sequence[str] = (),
        **options: Unpack[Options],
    ) -> None:
        self._given = tuple(labels)
        super().__init__(pictures, column, **options)

    def _make_axes(self, options: dict[str, Any]) -> list[widgets.Widget]:
        self.labels_field = widgets.Textarea(
            value="\n".join(self._given),
            placeholder="one per line: the likeliest is chosen, instead of a free answer",
            description="labels",
            rows=2,
            continuous_update=False,
            style=_STYLE,
            layout=_WIDE,
        )
        return [self.labels_field]

    def _read_labels(self) -> tuple[str, ...]:
        return tuple(line.strip() for line in self.labels_field.value.splitlines() if line.strip())


class DtypeCompare(Panel):
    """Compare dtypes: answers side by side, with differences from the first dtype, seconds and memory.

    Parameters
    ----------
    pictures, column, **options
        As for `Playground`.
    dtypes : sequence of str
        Initially checked; the first checked dtype is the reference.

    Examples
    --------
    >>> from qwenvl_kit.widgets import DtypeCompare
    >>> DtypeCompare(backend="echo").title
    'Compare dtypes'
    """

    title = "Compare dtypes"
    varied = ("dtype",)

    def __init__(
        self,
        pictures: Pictures = None,
        column: Hashable = "image",
        *,
        dtypes: Sequence[str] = DTYPES,
        **options: Unpack[Options],
    ) -> None:
        self._given = tuple(dtypes)
        super().__init__(pictures, column, **options)

    def _make_axes(self, options: dict[str, Any]) -> list[widgets.Widget]:
        options.pop("dtype", None)
        names = dict.fromkeys((*self._given, *DTYPES))
        self._dtypes = {
            name: widgets.Checkbox(value=name in self._given, description=name, indent=False, layout={"width": "120px"})
            for name in names
        }
        return [widgets.HBox([widgets.Label("dtypes to compare"), *self._dtypes.values()])]

    def _read_axes(self) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any], int]:
        ticked = tuple(name for name, box in self._dtypes.items() if box.value)
        if not ticked:
            raise ConfigError("No dtype is selected. Tick float32, bfloat16 or float16.")
        return {"dtype": ticked}, {}, 1


class SamplingCompare(Panel):
    """Compare sampling: the answers of every temperature and seed, with differences from the first temperature.

    Parameters
    ----------
    pictures, column, **options
        As for `Playground`; `seed` is the seed of the first repeat.
    temperatures : sequence of float
        Temperatures; the first one is the reference.
    repeats : int
        Seeds per temperature.

    Examples
    --------
    >>> from qwenvl_kit.widgets import SamplingCompare
    >>> SamplingCompare(backend="echo").title
    'Compare sampling'
    """

    title = "Compare sampling"
    varied = ("temperature", "do_sample", "seed")

    def __init__(
        self,
        pictures: Pictures = None,
        column: Hashable = "image",
        *,
        temperatures: Sequence[float] = (0.5, 1.0, 2.0),
        repeats: int = 3,
        **options: Unpack[Options],
    ) -> None:
        self._given, self._given_repeats = tuple(temperatures), repeats
        super().__init__(pictures, column, **options)

    def _make_axes(self, options: dict[str, Any]) -> list[widgets.Widget]:
        options.pop("temperature", None)
        options.pop("do_sample", None)
        self._temperatures = widgets.Text(
            value=", ".join(map(str, self._given)),
            description="temperatures",
            continuous_update=False,
            style=_STYLE,
            layout=_WIDE,
        )
        self._repeats = widgets.BoundedIntText(
            value=self._given_repeats, min=1, max=32, description="seeds for each", style=_STYLE, layout=_WIDE
        )
        self._seed = widgets.BoundedIntText(
            value=options.pop("seed", None) or 0, min=0, max=2**53, description="first seed", style=_STYLE, layout=_WIDE
        )
        return [self._temperatures, self._repeats, self._seed]

    def _read_axes(self) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any], int]:
        tried = numbers(self._temperatures.value, "temperature", float)
        if not tried:
            raise ConfigError("No temperature is given. Enter numbers above 0, such as 0.5, 1.0.")
        return {"temperature": tried}, {"do_sample": True, "seed": self._seed.value}, self._repeats.value
