"""The four panels: one setting, and grids over dtypes, sizes and sampling."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Unpack

import ipywidgets as widgets

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.options import Options
from qwenvl_kit.widgets.controls import numbers
from qwenvl_kit.widgets.gallery import Pictures
from qwenvl_kit.widgets.overlay import BeforeAfter, TokenGrid
from qwenvl_kit.widgets.panel import Panel
from qwenvl_kit.widgets.render import setting_label, thumbnailer, tokens_picture
from qwenvl_kit.widgets.state import Place

DTYPES = ("float32", "bfloat16", "float16")
_WIDE = {"width": "480px"}
_NARROW = {"description_width": "initial"}
_STYLE = {"description_width": "170px"}


class Playground(Panel):
    """Ask the model about pictures, turn any parameter, and see what changes from one run to the next.

    Parameters
    ----------
    pictures : DataFrame, Series or sequence, optional
        Pictures to offer; more can be uploaded. The first 24 are offered.
    column : label
        Their column where `pictures` is a DataFrame.
    **options
        Those of `Config`, as the controls stand at first; ``prompt`` among them.

    Raises
    ------
    ColumnNotFound
        There is no such column.
    ConfigError, UnknownOption
        An option breaks its rule, or does not exist.

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


class DtypeCompare(Panel):
    """What a dtype changes: answers side by side, differences from the first one marked, seconds and memory.

    Parameters
    ----------
    pictures, column, **options
        As for `Playground`.
    dtypes : sequence of str
        Ticked at first; the answers are held against the first one that is ticked.

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
            raise ConfigError("dtype must be one or more of float32, bfloat16, float16; got none; tick one")
        return {"dtype": ticked}, {}, 1


class SamplingCompare(Panel):
    """What sampling changes: the answers of every temperature and seed beside the first one.

    Parameters
    ----------
    pictures, column, **options
        As for `Playground`; `seed` is that of the first repeat.
    temperatures : sequence of float
        To try; the answers are held against those of the first one.
    repeats : int
        Seeds for each temperature.

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
            raise ConfigError("temperature must be one or more numbers above 0; got none; write 0.5, 1.0")
        return {"temperature": tried}, {"do_sample": True, "seed": self._seed.value}, self._repeats.value


class ResizeCompare(Panel):
    """What a size changes: answers at every height, each with its visual tokens over the picture.

    The pixel limits of the checkpoint still hold: give `min_pixels` and `max_pixels` to go beyond them.

    Parameters
    ----------
    pictures, column, **options
        As for `Playground`.
    heights : sequence of int or None
        To try, in pixels; None keeps the original. The answers are held against those of the first one.

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
        self._heights = widgets.Text(
            value=", ".join("original" if height is None else str(height) for height in self._given),
            description="heights in pixels",
            continuous_update=False,
            style=_STYLE,
            layout=_WIDE,
        )
        return [self._heights]

    def _read_axes(self) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any], int]:
        tried = numbers(self._heights.value, "resized_height", int)
        if not tried:
            raise ConfigError("resized_height must be one or more whole numbers; got none; write 56, 112, original")
        return {"resized_height": tried}, {}, 1

    def _detail_view(self) -> list[widgets.Widget]:
        self._which = widgets.Dropdown(
            options=[], description="Look closer at", layout={"width": "260px"}, style=_NARROW
        )
        self._left = widgets.Dropdown(options=[], description="left", layout={"width": "260px"}, style=_NARROW)
        self._right = widgets.Dropdown(options=[], description="right", layout={"width": "260px"}, style=_NARROW)
        self._slider, self._grid = BeforeAfter(), TokenGrid()
        for chooser in (self._which, self._left, self._right):
            chooser.observe(lambda _: self._look(), names="value")
        pictures = widgets.Box([self._slider, self._grid], layout={"flex_flow": "row wrap"})
        for shown in (self._slider, self._grid):
            shown.layout = {"width": "360px", "margin": "0 16px 0 0"}
        self._near = widgets.VBox(
            [widgets.Box([self._which, self._left, self._right], layout={"flex_flow": "row wrap"}), pictures]
        )
        self._near.layout.display = "none"
        return [self._near]

    def _draw_detail_view(self) -> None:
        trial = self._state.trial
        if trial is None or not trial.n_done:
            return
        heights = [(setting_label(setting), at) for at, setting in enumerate(trial.settings)]
        self._which.options = [(photo.name, at) for at, photo in enumerate(trial.photos)]
        self._left.options = self._right.options = heights
        self._which.value, self._left.value, self._right.value = 0, 0, len(heights) - 1
        self._near.layout.display = ""
        self._look()

    def _look(self) -> None:
        trial, at = self._state.trial, self._which.value
        if trial is None or at is None or self._left.value is None or self._right.value is None:
            return
        left, right = (self._seen((chosen.value, 0, at)) for chosen in (self._left, self._right))
        labels = [f"{size[1]}×{size[0]} px" if size else "no picture" for _, size, _ in (left, right)]
        name = trial.photos[at].name
        with self._slider.hold_sync():
            self._slider.before, self._slider.after = left[0], right[0]
            self._slider.before_label, self._slider.after_label = labels
            self._slider.alt = f"{name} as the model sees it"
        picture, size, factor = left
        with self._grid.hold_sync():
            self._grid.picture, self._grid.alt = picture, f"{name} at {labels[0]}"
            self._grid.rows, self._grid.columns = (size[0] // factor, size[1] // factor) if size else (0, 0)

    def _seen(self, place: Place) -> tuple[str, tuple[int, int] | None, int]:
        """The picture as the model saw it at one place of the grid, its size, and the side of a token."""
        trial = self._state.trial
        assert trial is not None, "only a run has places"
        result, block = trial.answers.get(place), trial.grid_cells.get(place[:2])
        if result is None or block is None or not result.height or not result.width:
            return "", None, 1
        size = (result.height, result.width)
        return (
            tokens_picture(trial.photos[place[2]], size, block.factor, thumbnailer(trial), lines=False) or "",
            size,
            block.factor,
        )
