"""Write the summary of a comparison as a table for a paper or a page, with its stamp."""

from __future__ import annotations

import html

import pandas as pd


def latex_table(summary: pd.DataFrame, stamp: str) -> str:
    """Return a table of the booktabs package with three digits; an interval stands behind its mean."""
    names = [str(name) for name in summary]
    ends = {f"{name}_{end}" for name in names for end in ("low", "high")}
    cells = {name: summary[name].map(_rounded) for name in names if name not in ends}
    for name in [one for one in cells if f"{one}_low" in names]:
        low, high = (summary[f"{name}_{end}"].map(_rounded) for end in ("low", "high"))
        cells[name] = cells[name] + " [" + low + ", " + high + "]"
    table: str = pd.DataFrame(cells).reset_index().to_latex(index=False, escape=True)
    return "".join(f"% {line}\n" for line in stamp.splitlines()) + table


def html_table(summary: pd.DataFrame, stamp: str) -> str:
    """Return a table with three digits and the stamp under it."""
    table: str = summary.to_html(float_format="{:.3g}".format, na_rep="–")
    return f"{table}\n<pre>{html.escape(stamp)}</pre>"


def _rounded(value: object) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
