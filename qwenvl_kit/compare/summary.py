"""Summarize a tidy frame by setting: means, calibration errors, and their intervals and tests over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from qwenvl_kit.compare.reliability import calibration_error, calibration_interval
from qwenvl_kit.compare.statistics import bootstrap_interval, paired_p_value

_TESTED = ("right", "truth_chrf", "brier")  # against the reference; the others are relative to it already, or no merit
_AVERAGED = ("same", "chrf", "right", "truth_chrf", "probability", "brier")
_COSTS = ("seconds", "visual_tokens", "new_tokens")


def summarize(frame: pd.DataFrame, varied: Sequence[str]) -> pd.DataFrame:
    """Return one row per setting, indexed by the varied options; see `Comparison.summary`."""
    frame = frame.assign(
        seconds=frame["seconds"].where((frame["status"] == "ok") & ~frame["cached"]),
        n=frame["status"] == "ok",
        errors=frame["status"] == "error",
    )
    means = [name for name in (*_AVERAGED, *_COSTS) if name in frame]
    frame[means] = frame[means].astype("Float64")
    how = {"n": "sum", "errors": "sum", **dict.fromkeys(means, "mean"), "peak_mib": "max"}
    summary: pd.DataFrame = by_setting(frame, varied).agg(how)
    if "brier" in frame:
        errors = [calibration_error(*answers_of(part)[:2]) for _, part in by_setting(frame, varied)]
        summary.insert(list(summary).index("brier") + 1, "ece", pd.Series(errors, summary.index, "Float64"))
    return summary


def with_intervals(
    summary: pd.DataFrame, frame: pd.DataFrame, varied: Sequence[str], reference: Mapping[str, Any], level: float
) -> pd.DataFrame:
    """Insert intervals and p-values behind the columns of agreement and calibration."""
    columns: dict[Any, Any] = dict(summary.items())
    references = _reference_places(summary.index.tolist(), varied, reference)
    for name in [one for one in _AVERAGED if one in summary]:
        by_image = _by_image(frame, varied, name)
        ends = [bootstrap_interval(values, level) for values in by_image]
        columns[f"{name}_low"], columns[f"{name}_high"] = zip(*ends, strict=True)
        if name in _TESTED:
            columns[f"{name}_p"] = [
                paired_p_value(values - by_image[at]) for values, at in zip(by_image, references, strict=True)
            ]
    if "ece" in summary:
        ends = [calibration_interval(*answers_of(part), level) for _, part in by_setting(frame, varied)]
        columns["ece_low"], columns["ece_high"] = zip(*ends, strict=True)
    order = [one for name in summary for one in (name, *(f"{name}_{end}" for end in ("low", "high", "p")))]
    return pd.DataFrame({name: columns[name] for name in order if name in columns}, index=summary.index)


def by_setting(frame: pd.DataFrame, varied: Sequence[str]) -> Any:
    """Return the frame grouped by its varied options, in the order of the grid."""
    return frame.groupby(list(varied), sort=False, dropna=False)


def answers_of(part: pd.DataFrame) -> tuple[Any, Any, Any]:
    """Return probability and correctness of each answer, NaN where unknown, and its image."""
    sure, right = (
        part[name].astype("Float64").to_numpy("float64", na_value=np.nan) for name in ("probability", "right")
    )
    return sure, right, part["row"].to_numpy()


def _by_image(frame: pd.DataFrame, varied: Sequence[str], name: str) -> list[pd.Series]:
    """Return, for each setting in the order of the summary, a measure's mean over the repeats of each image."""
    values = frame.assign(**{name: frame[name].astype("Float64").astype("float64")})
    return [part.groupby("row")[name].mean() for _, part in by_setting(values, varied)]


def _reference_places(settings: list[Any], varied: Sequence[str], reference: Mapping[str, Any]) -> list[int]:
    """Return for each setting the place of the one that it is compared with."""
    known = [one if isinstance(one, tuple) else (one,) for one in settings]
    places: list[int] = []
    for setting in known:
        wanted = [reference.get(name, value) for name, value in zip(varied, setting, strict=True)]
        places.append(next(at for at, one in enumerate(known) if all(map(_is_same, one, wanted))))
    return places


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values of an option are equal; None, as frames write it, is a missing value."""
    is_missing = (
        bool(pd.api.types.is_scalar(one) and pd.isna(one)),
        bool(pd.api.types.is_scalar(other) and pd.isna(other)),
    )
    return all(is_missing) if any(is_missing) else bool(one == other)
