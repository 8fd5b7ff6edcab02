"""Make the tidy frame of a grid: one row per image, setting and repeat, with its agreement measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qwenvl_kit.compare.metrics import chrf, token_edits
from qwenvl_kit.pipeline import Run
from qwenvl_kit.results import result_frame

if TYPE_CHECKING:
    from qwenvl_kit.compare.grid import GridCell, GridRun
    from qwenvl_kit.compare.settings import Setting
    from qwenvl_kit.types import Result

Text = str | None
Choose = Callable[[Sequence["Result"]], tuple[list[Text], list[float | None]]]
"""Return the likeliest label of each result, and its probability; None for one without scores."""


def tidy(
    run: GridRun,
    settings: Sequence[Setting],
    cells: pd.Series,
    truths: Sequence[Text] | None = None,
    choose: Choose | None = None,
) -> pd.DataFrame:
    """Return the frame of a grid without its unfinished rows.

    Parameters
    ----------
    run : GridRun
        The results.
    settings : sequence of Setting
        Of the grid.
    cells : Series
        Its images.
    truths : sequence of str or None, optional
        The correct answers, one per image.
    choose : callable, optional
        Chooses among the labels of a result, where prompts had labels.

    Returns
    -------
    DataFrame
        The varied options, ``repeat``, ``seed``, ``row`` (position of the image), ``label`` (its index label), the
        columns of ``df.vl.run``, ``visual_tokens``, ``peak_mib``; then ``same``, ``token_edits`` and ``chrf`` against
        the reference setting; ``probability``, with labels or ``logprobs``; with `truths` ``truth``, ``right``,
        ``truth_token_edits`` and ``truth_chrf``; and with both ``brier``.
    """
    grid_cells = sorted(run.grid_cells, key=lambda cell: (cell.setting, cell.repeat))
    reached = [(cell, result) for cell in grid_cells for result in cell.results if result.status != "cancelled"]
    shares: list[float | None] = []
    if choose is not None:
        names, shares = choose([result for _, result in reached])
        reached = [(cell, replace(result, text=name)) for (cell, result), name in zip(reached, names, strict=True)]
    texts = {(cell.setting, cell.repeat, result.row): result.text for cell, result in reached}
    answers = [result.text for _, result in reached]
    references = [texts.get((settings[cell.setting].reference, cell.repeat, result.row)) for cell, result in reached]
    index = pd.RangeIndex(len(reached))
    frame = pd.DataFrame(
        {
            **_varied([settings[cell.setting] for cell, _ in reached], settings[0]),
            **_places(reached, cells.index),
            **result_frame(Run([result for _, result in reached], _record(settings)), index),
            **_costs(reached, [isinstance(cell, list | tuple) for cell in cells.tolist()]),
            **_agreement(answers, references, ("same", "token_edits", "chrf")),
        },
        index=index,
    )
    if choose is not None:
        frame["probability"] = pd.array(shares, dtype="Float64")
    elif "logprob_sum" in frame:
        frame["probability"] = np.exp(frame["logprob_sum"])
    if truths is not None:
        true = [truths[result.row] for _, result in reached]
        frame["truth"] = pd.Series(true, index=index, dtype=frame["text"].dtype)
        frame = frame.assign(**_agreement(answers, true, ("right", "truth_token_edits", "truth_chrf")))
        if "probability" in frame:
            frame["brier"] = (frame["probability"] - frame["right"].astype("Float64")) ** 2
    return frame


def _record(settings: Sequence[Setting]) -> dict[str, Any]:
    """Return what makes `result_frame` add log-probabilities, where any setting has them."""
    given = [setting.config.logprobs for setting in settings]
    return {"effective": {"logprobs": next((one for one in given if one is not None), None)}}


def _varied(settings: Sequence[Setting], first: Setting) -> dict[str, Any]:
    named = [dict(setting.values) for setting in settings]
    return {name: _column([values[name] for values in named]) for name, _ in first.values}


def _column(values: list[Any]) -> Any:
    """Return integers with None as Int64; None means the default of the image or the checkpoint."""
    is_whole = all(value is None or (isinstance(value, int) and not isinstance(value, bool)) for value in values)
    return pd.array(values, dtype="Int64") if is_whole else pd.Series(values).infer_objects()


def _places(reached: Sequence[tuple[GridCell, Result]], index: pd.Index) -> dict[str, Any]:
    labels = index.to_flat_index()
    return {
        "repeat": [cell.repeat for cell, _ in reached],
        "seed": pd.array([cell.seed for cell, _ in reached], dtype="Int64"),
        "row": [result.row for _, result in reached],
        "label": labels.take(np.asarray([result.row for _, result in reached], dtype=np.intp)).to_numpy(),
    }


def _costs(reached: Sequence[tuple[GridCell, Result]], several: Sequence[bool]) -> dict[str, Any]:
    """Return costs; visual tokens only for rows of one image, since only the first image's size is known."""
    tokens = [
        None
        if result.height is None or result.width is None or several[result.row]
        else result.height * result.width // cell.factor**2
        for cell, result in reached
    ]
    peaks = [cell.peak_mib for cell, _ in reached]
    return {"visual_tokens": pd.array(tokens, dtype="Int64"), "peak_mib": pd.array(peaks, dtype="float64")}


def _agreement(answers: Sequence[Text], references: Sequence[Text], names: tuple[str, str, str]) -> dict[str, Any]:
    """Return exact, token and character agreement; missing where either text is."""
    pairs = list(zip(answers, references, strict=True))
    columns = (
        pd.array([_both(one, other, lambda a, b: a == b) for one, other in pairs], dtype="boolean"),
        pd.array([_both(one, other, token_edits) for one, other in pairs], dtype="Int64"),
        pd.array([_both(one, other, chrf) for one, other in pairs], dtype="Float64"),
    )
    return dict(zip(names, columns, strict=True))


def _both(one: Text, other: Text, measure: Any) -> Any:
    return None if not isinstance(one, str) or not isinstance(other, str) else measure(one, other)
