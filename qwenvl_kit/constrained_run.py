"""Run a column with answers of a given form, and shape them under its index."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from qwenvl_kit.frame_run import execute_rows, row_prompts, values_of
from qwenvl_kit.options import Config, Options
from qwenvl_kit.results import text_series
from qwenvl_kit.tasks.answer_forms import checked_text, constrained_prompts, row_constraints
from qwenvl_kit.tasks.extract import Extraction, check_constrainable

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import Control


def constrained_texts(
    cells: pd.Series,
    prompts: object,
    name: str,
    control: Control | None,
    options: Options,
    *,
    regex: str | None,
    choices: object,
) -> pd.Series:
    """Return answers that match a regular expression as a whole, or are one of `choices`, of all rows or of each.

    Raises
    ------
    ConfigError
        See `tasks.answer_forms.row_constraints` and `tasks.extract.check_constrainable`.
    """
    config = Config(**options)
    check_constrainable(config)
    constraints = row_constraints(regex, values_of("choices", choices, cells.index), len(cells))
    texts = row_prompts(prompts, config.prompt, cells.index)
    asked = constrained_prompts(texts, constraints)

    def shape(frame: pd.DataFrame) -> pd.Series:
        return text_series(frame, name).where(frame["status"] == "ok")

    return execute_rows(cells.tolist(), asked, config, control, shape, index=cells.index, checked=checked_text)


def extract_rows(
    cells: pd.Series,
    schema: object,
    prompts: object,
    control: Control | None,
    options: Options,
    *,
    constrain: bool,
    flatten: bool,
) -> pd.DataFrame:
    """Return the columns of a schema for each cell.

    Parameters
    ----------
    cells : Series
        One image, or list of images, per row.
    schema : object
        See `tasks.schema.read_schema`.
    prompts : str, sequence of str or None
        As for `classify_rows`; None asks for the fields of the schema, unless the ``prompt`` option was passed.

    Raises
    ------
    ConfigError
        See `tasks.extract.Extraction.of`.
    """
    config = Config(**options)
    extraction = Extraction.of(schema, config, constrain=constrain, flatten=flatten)
    is_own = prompts is not None or "prompt" in config.explicit
    asked = extraction.prompts(row_prompts(prompts, config.prompt, cells.index), is_own=is_own)
    return execute_rows(
        cells.tolist(), asked, config, control, extraction.frame, index=cells.index, checked=extraction.checked
    )
