"""The explanation of one answer: its words, and a map over the images for each."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qwenvl_kit.errors import ConfigError, printable
from qwenvl_kit.explain.maps import area_under, edges, on_pixels, pooled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from qwenvl_kit.attribution import AnswerMaps, Method, WordMap
    from qwenvl_kit.contact_sheet import ContactSheet
    from qwenvl_kit.explain.pictures import Pictures

_LONGEST_LIST = 300


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Where the words of one answer come from.

    Attributes
    ----------
    row : label
        Index label of the row.
    answer : str
        The answer.
    method : {"attention", "occlusion", "gradient"}
    maps : AnswerMaps
        The backend's words and weights, and the sizes of the images.
    pictures : Pictures
        The images of the row, to be drawn.

    Examples
    --------
    >>> import pandas as pd, qwenvl_kit
    >>> from qwenvl_kit.demo import draw, sample_scenes
    >>> images = pd.Series([draw(sample_scenes(1, seed=3)[0])])
    >>> asked = {"prompt": "What color is the circle?", "model_name": "demo", "dtype": "float32", "progress": False}
    >>> found = images.vl.explain(**asked)[0]  # doctest: +SKIP
    >>> found.map("red").shape == images[0].shape[:2]  # doctest: +SKIP
    True
    """

    row: Hashable
    answer: str
    method: Method
    maps: AnswerMaps = field(repr=False)
    pictures: Pictures = field(repr=False)

    @property
    def words(self) -> list[str]:
        """The words of the answer; of Chinese, its characters."""
        return [word.text for word in self.maps.words]

    @property
    def pooled(self) -> int:
        """Visual tokens along the side of a cell of the maps; more than 1 where there are over 16,384 in the row."""
        n_visual = sum(rows * columns for rows, columns in self.maps.grids)
        return pooled(np.zeros(n_visual, np.float32), self.maps.grids)[1]

    def grid(self, word: int | str, *, picture: int = 0, layer: int | None = None) -> NDArray[np.float32]:
        """Return the weights of a word over the grid of visual tokens, float32 (rows, columns).

        Parameters
        ----------
        word : int or str
            Its place among `words`, or its text, of which the first counts.
        picture : int
            Image of the row, from 0.
        layer : int, optional
            Of maps by layer (``layers="all"``); default: their mean.

        Raises
        ------
        ConfigError
            There is no such word, picture or layer.
        """
        grids, _ = pooled(self.weights(word, layer=layer), self.maps.grids)
        self._check_picture(picture)
        return grids[picture]

    def map(self, word: int | str, *, picture: int = 0, layer: int | None = None) -> NDArray[np.float32]:
        """Return the weights of a word on the pixels of the upright original, float32 (height, width).

        Parameters and errors are those of `grid`.
        """
        return on_pixels(self.grid(word, picture=picture, layer=layer), self.maps.sizes[picture])

    def weights(self, word: int | str, *, layer: int | None = None) -> NDArray[np.float32]:
        """Return the weight of each visual token, image by image and row by row, float32 (n_visual,); see `grid`."""
        found = self.word(word)
        if layer is None:
            return np.asarray(found.weights.mean(axis=0), np.float32)
        known = self.maps.layers if len(found.weights) > 1 else ()
        if layer not in known:
            raise ConfigError(
                f"There is no map of layer {layer!r}. Layers of these maps: {list(known) or 'only their mean'}. Run "
                "explain(…, layers='all')."
            )
        return np.asarray(found.weights[known.index(layer)])

    def word(self, word: int | str) -> WordMap:
        """Return a word by its place or its text; raises ConfigError where there is none."""
        words = self.maps.words
        if isinstance(word, str):
            found = next((one for one in words if one.text == word), None)
            if found is not None:
                return found
        elif -len(words) <= word < len(words):
            return words[word]
        listed = printable(", ".join(self.words), _LONGEST_LIST) or "none"
        raise ConfigError(f"The answer has no word {word!r}. Its words: {listed}.")

    def strongest(self, n: int = 3) -> list[int]:
        """Return the places of the words with the highest peaks, strongest first."""
        peaks = [float(one.weights.mean(axis=0).max()) for one in self.maps.words]
        return sorted(range(len(peaks)), key=lambda at: -peaks[at])[:n]

    def frame(self) -> pd.DataFrame:
        """Return a row per word, image and cell.

        Returns
        -------
        DataFrame
            ``row`` (index label), ``position`` (of the word), ``word``, ``logprob``, ``picture``, ``layer`` (only with
            ``layers="all"``), ``grid_row``, ``grid_column``, ``x0``, ``y0``, ``x1``, ``y1`` (pixels of the upright
            original), ``weight``.
        """
        parts = [self._cells(position, word) for position, word in enumerate(self.maps.words)]
        if not parts:
            return pd.DataFrame(columns=_COLUMNS)
        return pd.concat(parts, ignore_index=True)

    def curves(self, word: int | str) -> pd.DataFrame:
        """Return the deletion and insertion curves of a word, a row per share of hidden or shown tokens.

        Returns
        -------
        DataFrame
            ``share``, ``deletion``, ``insertion`` (probability of the word), ``random_deletion``, ``random_insertion``
            (mean over random orders).

        Raises
        ------
        ConfigError
            `explain` ran without ``check=True``, or there is no such word.
        """
        curves = self.word(word).curves
        if curves is None:
            raise ConfigError("There are no curves. Run explain(…, check=True).")
        return pd.DataFrame(
            {
                "share": curves.shares,
                "deletion": curves.deletion,
                "insertion": curves.insertion,
                "random_deletion": curves.random_deletion.mean(axis=0),
                "random_insertion": curves.random_insertion.mean(axis=0),
            }
        )

    def check(self) -> pd.DataFrame:
        """Return the areas under the curves of each word.

        Returns
        -------
        DataFrame
            ``row``, ``position``, ``word``, and as `curves` ``deletion``, ``insertion``, ``random_deletion``,
            ``random_insertion``. A map that finds what matters has a lower deletion and a higher insertion than random
            orders.

        Raises
        ------
        ConfigError
            `explain` ran without ``check=True``.
        """
        rows: list[dict[str, Any]] = []
        for position, word in enumerate(self.maps.words):
            curves = self.curves(position)
            shares = curves.pop("share").to_numpy()
            areas = {str(name): float(area_under(shares, values.to_numpy())) for name, values in curves.items()}
            rows.append({"row": self.row, "position": position, "word": word.text, **areas})
        return pd.DataFrame(rows)

    def show(self) -> ContactSheet:
        """Show the images with the answer: a word that is hovered or focused lights up what it comes from.

        Returns
        -------
        ContactSheet
            Displays itself in a notebook, also a saved one; it needs no script. ``.html`` is the HTML.
        """
        from qwenvl_kit.explain.views import show

        return show([self], n_rows=1)

    def plot(self, word: int | str, *, picture: int = 0, layer: int | None = None, ax: Axes | None = None) -> Axes:
        """Draw the map of a word over its image, for a paper.

        Raises
        ------
        MissingExtra
            matplotlib is not installed.
        RowError
            The image can no longer be read.
        ConfigError
            See `grid`.
        """
        from qwenvl_kit.explain.plot import draw

        return draw(self, word, picture=picture, layer=layer, ax=ax)

    def _repr_html_(self) -> str:
        return self.show().html

    def _check_picture(self, picture: int) -> None:
        n_pictures = len(self.maps.grids)
        if not 0 <= picture < n_pictures:
            raise ConfigError(f"picture is {picture!r}, and the row has {n_pictures}. Use 0 to {n_pictures - 1}.")

    def _cells(self, position: int, word: WordMap) -> pd.DataFrame:
        layers = self.maps.layers if len(word.weights) > 1 else (None,)
        grids, _ = pooled(word.weights, self.maps.grids)
        parts = []
        for picture, (grid, size) in enumerate(zip(grids, self.maps.sizes, strict=True)):
            which, rows, columns = (one.ravel() for one in np.indices(grid.shape))
            down, across = edges(grid.shape[1], size[0]), edges(grid.shape[2], size[1])
            cells: dict[str, Any] = {
                "row": [self.row] * grid.size,
                "position": position,
                "word": word.text,
                "logprob": word.logprob,
                "picture": picture,
                "layer": np.array(layers)[which],
                "grid_row": rows,
                "grid_column": columns,
                "x0": across[columns],
                "y0": down[rows],
                "x1": across[columns + 1],
                "y1": down[rows + 1],
                "weight": grid.ravel(),
            }
            if len(layers) == 1:
                del cells["layer"]
            parts.append(pd.DataFrame(cells))
        return pd.concat(parts, ignore_index=True)


_COLUMNS = [
    "row",
    "position",
    "word",
    "logprob",
    "picture",
    "grid_row",
    "grid_column",
    "x0",
    "y0",
    "x1",
    "y1",
    "weight",
]
