"""The explanations of a column, a row each."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import pandas as pd

from qwenvl_kit.errors import ConfigError, printable
from qwenvl_kit.explain.explanation import Explanation
from qwenvl_kit.explain.pictures import Pictures
from qwenvl_kit.explain.views import MAX_BYTES, show

if TYPE_CHECKING:
    from qwenvl_kit.attribution import Method
    from qwenvl_kit.contact_sheet import ContactSheet
    from qwenvl_kit.options import FetchOptions


@dataclass(frozen=True, slots=True, eq=False)
class Explanations:
    """Explanations of the rows that were answered, in their order; ``found.of(label)`` is that of a row.

    Attributes
    ----------
    rows : tuple of Explanation
        Of the rows with an answer.
    results : DataFrame
        All rows under the frame's index, as of ``df.vl.run``; ``attrs`` hold the record.
    """

    rows: tuple[Explanation, ...] = field(repr=False)
    results: pd.DataFrame = field(repr=False)

    @classmethod
    def of_run(cls, results: pd.DataFrame, cells: Sequence[object], method: Method, options: FetchOptions) -> Self:
        """Return the explanations of a run's result frame, whose column ``maps`` has the maps."""
        maps = results["maps"].tolist() if "maps" in results else [None] * len(results)
        answers = results["text"].tolist()
        rows = tuple(
            Explanation(label, answer, method, some, Pictures(cell, options))
            for label, answer, some, cell in zip(results.index, answers, maps, cells, strict=True)
            if some is not None
        )
        return cls(rows, results.drop(columns="maps", errors="ignore"))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> Explanation:
        return self.rows[at]

    def __iter__(self) -> Iterator[Explanation]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"Explanations({len(self.rows)} of {len(self.results)} rows; .frame(), .show(), .check())"

    def of(self, label: Hashable) -> Explanation:
        """Return the explanation of a row by its index label.

        Raises
        ------
        ConfigError
            There is no such row, or it has no answer.
        """
        for one in self.rows:
            if one.row == label:
                return one
        if label not in self.results.index:
            raise ConfigError(f"There is no row {printable(repr(label), 60)}.")
        failed = self.results.loc[[label]].iloc[0]
        raise ConfigError(f"Row {printable(repr(label), 60)} has no answer ({failed['status']}): {failed['error']}")

    def frame(self) -> pd.DataFrame:
        """Return a row per answer, word, image and cell; see `Explanation.frame`."""
        frames = [one.frame() for one in self.rows]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def check(self) -> pd.DataFrame:
        """Return the areas under the curves of all words; see `Explanation.check`."""
        frames = [one.check() for one in self.rows]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def show(self, *, n_rows: int = 12, max_bytes: int = MAX_BYTES) -> ContactSheet:
        """Show images with their answers; a word that is hovered or focused lights up what it comes from.

        Parameters
        ----------
        n_rows : int
            Maximum number of rows; the rest is counted.
        max_bytes : int
            Maximum size of the HTML, which a notebook saves.

        Returns
        -------
        ContactSheet
            Displays itself in a notebook, also a saved one; it needs no script. ``.html`` is the HTML.
        """
        return show(self.rows, n_rows=n_rows, max_bytes=max_bytes)

    def _repr_html_(self) -> str:
        return self.show().html
