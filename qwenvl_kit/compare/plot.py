"""Plot a comparison: quality against cost, and how often answers are right against their probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from qwenvl_kit.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vPX*<>"  # distinguishable without colours
_MEASURES = {
    "right": "share of answers that are right",
    "truth_chrf": "chrF against the truth",
    "same": "share of answers equal to the reference",
    "chrf": "chrF against the reference",
    "mean_iou": "mean IoU with the true boxes of an image",
    "probability": "mean probability of answers",
    "brier": "Brier score",
    "seconds": "seconds per image",
    "visual_tokens": "visual tokens per image",
    "prompt_tokens": "prompt tokens per image",
    "new_tokens": "new tokens per image",
    "peak_mib": "peak memory, MiB",
    "resized_height": "resized_height, px",
    "resized_width": "resized_width, px",
    "min_pixels": "min_pixels, px",
    "max_pixels": "max_pixels, px",
}
_TEXT_PX = (40, 14)  # of a short text of 8 points
_LINE = 0.05  # height of a line of numbers above a share of one


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
    """Draw a point per setting; a line joins settings that differ only in the last option, if it is a number."""
    ax = ax or _new_axes()
    points = spread(frame, varied, quality, cost)
    outer = list(varied[:-1])
    groups = points.groupby(outer, sort=False, dropna=False) if outer else [((), points)]
    for at, (values, group) in enumerate(groups):
        name = ", ".join(f"{option}={value}" for option, value in zip(outer, values, strict=True))
        _draw_group(ax, group, varied[-1], marker=_MARKERS[at % len(_MARKERS)], label=name or None)
    ax.set(xlabel=labels[cost], ylabel=labels[quality])
    ax.margins(0.12)
    _start_at_zero(ax, points)
    if annotate:
        _write_values(ax, points, varied[-1])
    note = f"labels: {varied[-1]}" if annotate else None
    if outer:
        ax.legend(title=note, loc="center left", bbox_to_anchor=(1.02, 0.5))  # beside the points, never over them
    elif note:
        ax.set_title(note, fontsize="medium")
    return ax


def measure_names(frame: pd.DataFrame, varied: Sequence[str], *names: str) -> dict[str, str]:
    """Return what to write at the axes of measures.

    Raises
    ------
    ConfigError
        The frame has no such numeric measure.
    """
    for name in names:
        if name not in frame or not pd.api.types.is_numeric_dtype(frame[name]):
            known = [name for name in dict.fromkeys((*_MEASURES, *varied)) if name in frame]
            raise ConfigError(f"{name!r} is not a numeric measure of this comparison. Use one of: {', '.join(known)}.")
    return {name: _MEASURES.get(name, name) for name in names}


def _draw_group(ax: Axes, group: pd.DataFrame, option: str, *, marker: str, label: str | None) -> None:
    if is_ordered := _has_order(group[option]):
        group = group.sort_values(option, na_position="last")
    is_line = is_ordered and (group["cost"].is_monotonic_increasing or group["cost"].is_monotonic_decreasing)
    style = "-" if is_line else "none"
    (line,) = ax.plot(group["cost"], group["quality"], marker=marker, linestyle=style, label=label)
    spread_out = group[(group["cost_spread"] > 0) | (group["quality_spread"] > 0)]
    if len(spread_out):
        ax.errorbar(
            spread_out["cost"],
            spread_out["quality"],
            xerr=spread_out["cost_spread"],
            yerr=spread_out["quality_spread"],
            fmt="none",
            ecolor=line.get_color(),
            capsize=3,
        )


def _has_order(values: pd.Series) -> bool:
    """Whether values of an option are numbers, of which a line between points may speak."""
    given = values.dropna()
    return all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in given)


def _start_at_zero(ax: Axes, points: pd.DataFrame) -> None:
    """Cut the margins where they reach below zero and no point does."""
    if points["cost"].min() >= 0:
        ax.set_xlim(left=max(0.0, ax.get_xlim()[0]))
    if points["quality"].min() > 0:
        ax.set_ylim(bottom=max(0.0, ax.get_ylim()[0]))


def _write_values(ax: Axes, points: pd.DataFrame, option: str) -> None:
    """Write the option's values beside the points, one text for points that lie within the width of a text."""
    spots: dict[tuple[int, int], dict[str, tuple[float, float]]] = {}
    places = points[["cost", "quality"]].to_numpy(float)
    for value, place, (x, y) in zip(points[option], places, ax.transData.transform(places), strict=True):
        if np.isfinite([x, y]).all():
            spot = spots.setdefault((round(x / _TEXT_PX[0]), round(y / _TEXT_PX[1])), {})
            spot.setdefault("None" if pd.isna(value) else str(value), (float(place[0]), float(place[1])))
    for spot in spots.values():
        ax.annotate(", ".join(spot), next(iter(spot.values())), xytext=(4, 4), textcoords="offset points", fontsize=8)


def draw_reliability(bins: pd.DataFrame, varied: Sequence[str], *, ax: Axes | None, annotate: bool) -> Axes:
    """Draw a line per setting through the bins of `Comparison.reliability`, with intervals and counts."""
    ax = ax or _new_axes()
    ax.plot([0, 1], [0, 1], linestyle=":", color="gray")
    n_lines = 0
    for at, (values, points) in enumerate(bins.groupby(list(varied), sort=False, dropna=False)):
        share = points["right"].to_numpy(float)
        below, above = share - points["right_low"].to_numpy(float), points["right_high"].to_numpy(float) - share
        line = ax.errorbar(
            points["confidence"].to_numpy(float),
            share,
            yerr=np.clip([below, above], 0, None),  # a skewed interval may leave the share out
            marker=_MARKERS[at % len(_MARKERS)],
            capsize=3,
            label=", ".join(f"{option}={value}" for option, value in zip(varied, values, strict=True)),
        )
        if annotate:
            colour = line.lines[0].get_color()
            for x, n in zip(points["confidence"], points["n"], strict=True):
                ax.text(x, 1.05 + _LINE * at, f"{n:,}", ha="center", fontsize=8, color=colour)
            n_lines = at + 1
    ax.set(xlabel="probability of the answer", ylabel="share of answers that are right")
    ax.set(ylim=(-0.03, 1.04 + _LINE * n_lines), yticks=[0, 0.2, 0.4, 0.6, 0.8, 1])
    ax.legend(title="at the top: number of answers" if annotate else None)
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


def _new_axes() -> Axes:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtra("plots of comparisons", "notebook") from error
    axes: Axes = pyplot.subplots(layout="constrained")[1]
    return axes
