"""Write a summary as a LaTeX table."""

from __future__ import annotations

import pandas as pd


def latex_table(summary: pd.DataFrame) -> str:
    """Return a summary as a table of the booktabs package, with three digits; an interval stands behind its mean.

    Examples
    --------
    >>> frame = pd.DataFrame({"right": [0.5], "right_low": [0.25], "right_high": [0.75]}, index=[56])
    >>> "0.5 [0.25, 0.75]" in latex_table(frame)
    True
    """
    names = [str(name) for name in summary]
    ends = {f"{name}_{end}" for name in names for end in ("low", "high")}
    cells = {name: summary[name].map(_rounded) for name in names if name not in ends}
    for name in [one for one in cells if f"{one}_low" in names]:
        low, high = (summary[f"{name}_{end}"].map(_rounded) for end in ("low", "high"))
        cells[name] = cells[name] + " [" + low + ", " + high + "]"
    table: str = pd.DataFrame(cells).reset_index().to_latex(index=False, escape=True)
    return table


def _rounded(value: object) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
