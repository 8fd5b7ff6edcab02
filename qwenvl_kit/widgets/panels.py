"""The four panels: one setting, and grids over dtypes, sizes and sampling."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Unpack

import ipywidgets as widgets

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.options import Options
from qwenvl_kit.widgets.controls import numbers
from qwenvl_kit.widgets.gallery import Pictures
from qwenvl_kit.widgets.images import model_input_uri
from qwenvl_kit.widgets.overlay import BeforeAfter, TokenGrid
from qwenvl_kit.widgets.panel import Panel
from qwenvl_kit.widgets.render import setting_label, thumbnailer_of
from qwenvl_kit.widgets.state import Place

DTYPES = ("float32", "bfloat16", "float16")
_WIDE = {"width": "480px"}
_NARROW = {"description_width": "initial"}
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


class ResizeCompare(Panel):
    """Compare sizes: answers at every height, with the visual tokens over the image.

    The checkpoint's pixel limits apply; pass `min_pixels` and `max_pixels` to change them.

    Parameters
    ----------
    pictures, column, **options
        As for `Playground`.
    heights : sequence of int or None
        Heights in pixels; None keeps the original. The first one is the reference.

    Examples
    --------
    >>> from qwenvl_kit.widgets import ResizeCompare
    >>> ResizeCompare(backend="echo").title
    'Compare sizes'
    """

    title = "Compare sizes"
    varied = ("resized_height",)
    draws_tokens = True

    def __init__(
        self,
        pictures: Pictures = None,
        column: Hashable = "image",
        *,
        heights: Sequence[int | None] = (None, 448, 224, 112),
        **options: Unpack[Options],
    ) -> None:
        self._given = tuple(heights)
        super().__init__(pictures, column, **options)

    def _make_axes(self, options: dict[str, Any]) -> list[widgets.Widget]:
        options.pop("resized_height", None)
        self.heights_field = widgets.Text(
            value=", ".join("original" if height is None else str(height) for height in self._given),
            description="heights in pixels",
            continuous_update=False,
            style=_STYLE,
            layout=_WIDE,
        )
        return [self.heights_field]

    def _read_axes(self) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any], int]:
        tried = numbers(self.heights_field.value, "resized_height", int)
        if not tried:
            raise ConfigError("No height is given. Enter integers or original, such as 56, 112, original.")
        return {"resized_height": tried}, {}, 1

    def _detail_view(self) -> list[widgets.Widget]:
        self.image_choice = widgets.Dropdown(
            options=[], description="Details of", layout={"width": "260px"}, style=_NARROW
        )
        self.left_choice = widgets.Dropdown(options=[], description="left", layout={"width": "260px"}, style=_NARROW)
        self.right_choice = widgets.Dropdown(options=[], description="right", layout={"width": "260px"}, style=_NARROW)
        self.slider, self.token_grid = BeforeAfter(), TokenGrid()
        for chooser in (self.image_choice, self.left_choice, self.right_choice):
            chooser.observe(lambda _: self._draw_selection(), names="value")
        previews = widgets.Box([self.slider, self.token_grid], layout={"flex_flow": "row wrap"})
        for shown in (self.slider, self.token_grid):
            shown.layout = {"width": "360px", "margin": "0 16px 0 0"}
        self._details = widgets.VBox(
            [
                widgets.Box([self.image_choice, self.left_choice, self.right_choice], layout={"flex_flow": "row wrap"}),
                previews,
            ]
        )
        self._details.layout.display = "none"
        return [self._details]

    def _draw_detail_view(self) -> None:
        trial = self._state.trial
        if trial is None or not trial.n_done:
            return
        heights = [(setting_label(setting), at) for at, setting in enumerate(trial.settings)]
        self.image_choice.options = [(image.name, at) for at, image in enumerate(trial.images)]
        self.left_choice.options = self.right_choice.options = heights
        self.image_choice.value, self.left_choice.value, self.right_choice.value = 0, 0, len(heights) - 1
        self._details.layout.display = ""
        self._draw_selection()

    def _draw_selection(self) -> None:
        trial, at = self._state.trial, self.image_choice.value
        if trial is None or at is None or self.left_choice.value is None or self.right_choice.value is None:
            return
        left, right = (self._model_input((chosen.value, 0, at)) for chosen in (self.left_choice, self.right_choice))
        labels = [f"{size[1]}×{size[0]} px" if size else "no image" for _, size, _ in (left, right)]
        name = trial.images[at].name
        with self.slider.hold_sync():
            self.slider.before, self.slider.after = left[0], right[0]
            self.slider.before_label, self.slider.after_label = labels
            self.slider.alt = f"{name} as the model receives it"
        uri, size, factor = left
        with self.token_grid.hold_sync():
            self.token_grid.picture, self.token_grid.alt = uri, f"{name} at {labels[0]}"
            self.token_grid.rows, self.token_grid.columns = (size[0] // factor, size[1] // factor) if size else (0, 0)

    def _model_input(self, place: Place) -> tuple[str, tuple[int, int] | None, int]:
        """Return URI and ``(height, width)`` of the model's input at a place, and the side of a token in pixels."""
        trial = self._state.trial
        assert trial is not None, "places belong to a trial"
        result, cell = trial.answers.get(place), trial.grid_cells.get(place[:2])
        if result is None or cell is None or not result.height or not result.width:
            return "", None, 1
        size = (result.height, result.width)
        return (
            model_input_uri(trial.images[place[2]], size, cell.factor, thumbnailer_of(trial), lines=False) or "",
            size,
            cell.factor,
        )
