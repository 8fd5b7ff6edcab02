"""A grid's results in, a tidy frame out: one row per picture, setting and repeat, with what it agrees with.

It runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qwenvl_kit.compare.metrics import chrf, token_edits
from qwenvl_kit.pipeline import Run
from qwenvl_kit.results import result_frame

if TYPE_CHECKING:
    from qwenvl_kit.compare.grid import Block, GridRun
    from qwenvl_kit.compare.settings import Setting
    from qwenvl_kit.types import Result

Text = str | None


def tidy(
    gave: GridRun, settings: Sequence[Setting], cells: pd.Series, truths: Sequence[Text] | None = None
) -> pd.DataFrame:
    """Make the frame of a grid; rows that were not reached are left out.

    Returns
    -------
    DataFrame
        The varied options, ``repeat``, ``seed``, ``row`` (position of the picture), ``label`` (its index label), the
        columns of ``df.vl.run``, ``visual_tokens``, ``peak_mib``; then ``same``, ``token_edits`` and ``chrf`` against
        the reference setting; and with `truths` ``truth``, ``right``, ``truth_token_edits`` and ``truth_chrf``.
    """
    blocks = sorted(gave.blocks, key=lambda block: (block.setting, block.repeat))
    reached = [(block, result) for block in blocks for result in block.results if result.status != "cancelled"]
    texts = {(block.setting, block.repeat, result.row): result.text for block, result in reached}
    said = [result.text for _, result in reached]
    wanted = [texts.get((settings[block.setting].reference, block.repeat, result.row)) for block, result in reached]
    index = pd.RangeIndex(len(reached))
    frame = pd.DataFrame(
        {
            **_varied([settings[block.setting] for block, _ in reached], settings[0]),
            **_places(reached, cells.index),
            **result_frame(Run([result for _, result in reached], {}), index),
            **_costs(reached, [isinstance(cell, list | tuple) for cell in cells.tolist()]),
            **_agreement(said, wanted, ("same", "token_edits", "chrf")),
        },
        index=index,
    )
    if truths is not None:
        true = [truths[result.row] for _, result in reached]
        frame["truth"] = pd.Series(true, index=index, dtype=frame["text"].dtype)
        frame = frame.assign(**_agreement(said, true, ("right", "truth_token_edits", "truth_chrf")))
    return frame


def _varied(settings: Sequence[Setting], first: Setting) -> dict[str, Any]:
    named = [dict(setting.values) for setting in settings]
    return {name: _column([values[name] for values in named]) for name, _ in first.values}


def _column(values: list[Any]) -> Any:
    """Whole numbers stay whole beside None, which stands for an option left to the picture or the checkpoint."""
    is_whole = all(value is None or (isinstance(value, int) and not isinstance(value, bool)) for value in values)
    return pd.array(values, dtype="Int64") if is_whole else pd.Series(values).infer_objects()


def _places(reached: Sequence[tuple[Block, Result]], index: pd.Index) -> dict[str, Any]:
    labels = index.to_flat_index()
    return {
        "repeat": [block.repeat for block, _ in reached],
        "seed": pd.array([block.seed for block, _ in reached], dtype="Int64"),
        "row": [result.row for _, result in reached],
        "label": labels.take(np.asarray([result.row for _, result in reached], dtype=np.intp)).to_numpy(),
    }


def _costs(reached: Sequence[tuple[Block, Result]], several: Sequence[bool]) -> dict[str, Any]:
    """Visual tokens are those of one picture: of several in a row only the first one's size is known."""
    tokens = [
        None
        if result.height is None or result.width is None or several[result.row]
        else result.height * result.width // block.factor**2
        for block, result in reached
    ]
    peaks = [block.peak_mib for block, _ in reached]
    return {"visual_tokens": pd.array(tokens, dtype="Int64"), "peak_mib": pd.array(peaks, dtype="float64")}


def _agreement(said: Sequence[Text], wanted: Sequence[Text], names: tuple[str, str, str]) -> dict[str, Any]:
    """Exact, in tokens, in characters; missing where either text is."""
    pairs = list(zip(said, wanted, strict=True))
    columns = (
        pd.array([_both(one, other, lambda a, b: a == b) for one, other in pairs], dtype="boolean"),
        pd.array([_both(one, other, token_edits) for one, other in pairs], dtype="Int64"),
        pd.array([_both(one, other, chrf) for one, other in pairs], dtype="Float64"),
    )
    return dict(zip(names, columns, strict=True))


def _both(one: Text, other: Text, measure: Any) -> Any:
    return None if not isinstance(one, str) or not isinstance(other, str) else measure(one, other)
