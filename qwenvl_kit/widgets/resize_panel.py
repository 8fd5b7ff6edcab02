"""The panel for a grid over sizes, with the visual tokens over the images."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Unpack

import ipywidgets as widgets

from qwenvl_kit.options import Options
from qwenvl_kit.widgets.controls import heights_field, read_heights
from qwenvl_kit.widgets.gallery import Pictures
from qwenvl_kit.widgets.images import model_input_uri
from qwenvl_kit.widgets.overlay import BeforeAfter, TokenGrid
from qwenvl_kit.widgets.panel import Panel
from qwenvl_kit.widgets.render import setting_label, thumbnailer_of
from qwenvl_kit.widgets.state import Place

_WIDE = {"width": "480px"}
_NARROW = {"description_width": "initial"}
_STYLE = {"description_width": "170px"}


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
        self.heights_field = heights_field(self._given)
        return [self.heights_field]

    def _read_axes(self) -> tuple[dict[str, tuple[Any, ...]], dict[str, Any], int]:
        return read_heights(self.heights_field), {}, 1

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
