"""Plot quality against cost of a tidy frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from qwenvl_kit.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vPX*<>"  # distinguishable without colours


def draw(
    frame: pd.DataFrame,
    varied: Sequence[str],
    quality: str,
    cost: str,
    labels: Mapping[str, str],
    *,
    ax: Axes | None,
    annotate: bool,
) -> Axes:
    """Draw a point per setting; a line joins settings that differ only in the last option."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtra("plots of comparisons", "notebook") from error
    ax = ax or pyplot.subplots(layout="constrained")[1]
    points = spread(frame, varied, quality, cost)
    outer = list(varied[:-1])
    groups = points.groupby(outer, sort=False, dropna=False) if outer else [((), points)]
    for at, (values, group) in enumerate(groups):
        name = ", ".join(f"{option}={value}" for option, value in zip(outer, values, strict=True))
        ax.errorbar(
            group["cost"],
            group["quality"],
            xerr=group["cost_spread"],
            yerr=group["quality_spread"],
            marker=_MARKERS[at % len(_MARKERS)],
            capsize=3,
            label=name or None,
        )
    if annotate:
        for _, point in points.iterrows():
            value = point[varied[-1]]
            text = "None" if pd.isna(value) else str(value)
            ax.annotate(text, (point["cost"], point["quality"]), xytext=(4, 4), textcoords="offset points", fontsize=8)
    ax.set(xlabel=labels[cost], ylabel=labels[quality])
    ax.margins(0.12)
    note = f"labels: {varied[-1]}" if annotate else None
    if outer:
        ax.legend(title=note)
    elif note:
        ax.set_title(note, fontsize="medium")
    return ax


def spread(frame: pd.DataFrame, varied: Sequence[str], quality: str, cost: str) -> pd.DataFrame:
    """Return mean and standard deviation over repeats of the mean over images, per setting."""
    answered = frame[(frame["status"] == "ok") & ~frame["cached"]]
    measured = answered[[*varied, "repeat"]].assign(
        quality=answered[quality].astype("Float64"), cost=answered[cost].astype("Float64")
    )
    names = list(varied)
    repeats = measured.groupby([*names, "repeat"], sort=False, dropna=False).mean()
    over = repeats.groupby(names, sort=False, dropna=False)
    means, deviations = over.mean(), over.std(ddof=0)
    return (
        pd.DataFrame(
            {
                "quality": means["quality"],
                "cost": means["cost"],
                "quality_spread": deviations["quality"],
                "cost_spread": deviations["cost"],
            }
        )
        .astype(float)
        .reset_index()
    )
