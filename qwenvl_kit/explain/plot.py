"""Draw the map of a word over its image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qwenvl_kit.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qwenvl_kit.explain.explanation import Explanation


def draw(explanation: Explanation, word: int | str, *, picture: int, layer: int | None, ax: Axes | None) -> Axes:
    """Draw a word's map over an image; weights below zero are transparent."""
    grid = np.maximum(explanation.grid(word, picture=picture, layer=layer), 0)
    pixels = explanation.pictures.pixels(picture)
    ax = ax or _new_axes()
    extent = (0, pixels.shape[1], pixels.shape[0], 0)
    ax.imshow(pixels, extent=extent)
    peak = float(grid.max())
    opacity = 0.75 * grid / peak if peak > 0 else np.zeros_like(grid)
    shown = ax.imshow(grid, extent=extent, cmap="inferno", alpha=opacity, vmin=0, interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(f"{explanation.word(word).text} ({explanation.method})", fontsize="medium")
    ax.figure.colorbar(shown, ax=ax, fraction=0.046, label="weight")
    return ax


def _new_axes() -> Axes:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise MissingExtra("plot()", "notebook") from error
    ax: Axes = plt.figure().add_subplot()
    return ax
