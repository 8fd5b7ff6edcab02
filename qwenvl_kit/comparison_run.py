"""Compare settings on the rows of a column: free answers, or one of some labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from qwenvl_kit.compare import Comparison, compare, expand
from qwenvl_kit.frame_run import remember, row_prompts, values_of
from qwenvl_kit.options import Config, Options
from qwenvl_kit.pipeline import Run
from qwenvl_kit.prompts import fill
from qwenvl_kit.results import result_frame
from qwenvl_kit.tasks.classify import (
    Classification,
    Normalize,
    check_classifiable,
    check_varied,
    label_prompts,
    row_labels,
)

if TYPE_CHECKING:
    from qwenvl_kit.compare.tidy import Choose
    from qwenvl_kit.inference.backend import Control
    from qwenvl_kit.types import Result, RowPrompt


def compare_rows(
    cells: pd.Series,
    prompts: object,
    vary: Mapping[str, Sequence[object]],
    options: Options,
    *,
    labels: object,
    normalize: Normalize,
    reference: Mapping[str, object] | None,
    truth: object,
    repeats: int,
    control: Control | None,
) -> Comparison:
    """Return the comparison of all combinations of settings on all cells; `prompts` are left out where they vary."""
    classification = Classification(normalize)
    some = None if labels is None else row_labels(values_of("labels", labels, cells.index), len(cells))
    if some is not None:
        check_varied(vary)
        for setting in expand(vary, options, reference):
            check_classifiable(setting.config)
        options = {**options, "max_caption_length": 1}
    config = Config(**options)
    is_own = prompts is not None or "prompt" in vary or "prompt" in config.explicit
    given = None if "prompt" in vary else row_prompts(prompts, config.prompt, cells.index)

    def prompts_of(prompt: str | None) -> Sequence[RowPrompt]:
        texts = [prompt] * len(cells) if given is None else given
        return texts if some is None else label_prompts(texts, some, is_own=is_own)

    return compare(
        cells,
        prompts_of,
        vary,
        options,
        reference=reference,
        truths=None if truth is None else fill(values_of("truth", truth, cells.index), None, len(cells)),
        choose=None if some is None else chooser(classification, some),
        repeats=repeats,
        control=control,
        keep=remember,
    )


def chooser(classification: Classification, labels: Sequence[tuple[str, ...]]) -> Choose:
    """Return what chooses among the labels of each row, for `compare.tidy`."""

    def choose(results: Sequence[Result]) -> tuple[list[str | None], list[float | None]]:
        frame = result_frame(Run(list(results), {}), pd.RangeIndex(len(results)))
        found = classification.frame(frame, [labels[result.row] for result in results], None)
        known = found["label"].notna()
        names, shares = (found[name].astype(object).where(known, None).tolist() for name in ("label", "probability"))
        return names, shares

    return choose
