"""What a comparison needs of objects that its settings found; `qwenvl_kit.boxes` judges them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import pandas as pd

if TYPE_CHECKING:
    from qwenvl_kit.compare.grid import GridRun
    from qwenvl_kit.compare.settings import Setting


class Objects(Protocol):
    """Objects by setting and repeat; see `qwenvl_kit.boxes.compared.ComparedObjects`."""

    def frames(self, repeat: int) -> dict[str, pd.DataFrame]:
        """Return what each setting found in a repeat."""
        ...

    def marks(self) -> pd.DataFrame:
        """Return a row per finished row of the grid: counts of objects, and with a truth whether they are right."""
        ...

    def measures(self, level: float | None) -> pd.DataFrame:
        """Return a row per setting: rates, with intervals where a level is given."""
        ...

    def judged(self) -> pd.DataFrame:
        """Return a row per object: the varied options, ``row``, ``probability`` and ``right``."""
        ...


Locate = Callable[["GridRun", "Sequence[Setting]"], Objects]
"""Read the objects of a grid; its results become those that have been checked for objects."""


def with_marks(frame: pd.DataFrame, objects: Objects) -> pd.DataFrame:
    """Return a tidy frame with what is known of the objects of each row.

    The probability of the whole answer is left out: each object has a score of its own.
    """
    marks = objects.marks() if len(frame) else pd.DataFrame(index=frame.index)
    return pd.concat([frame.drop(columns="probability", errors="ignore"), marks], axis="columns")


def with_measures(summary: pd.DataFrame, objects: Objects, level: float | None) -> pd.DataFrame:
    """Return a summary with the measures of its objects."""
    measures = objects.measures(level) if len(summary) else pd.DataFrame()
    return pd.concat([summary, measures.set_index(summary.index)], axis="columns")
