"""Run a column with answers of a given form, and shape them under its index."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from qwenvl_kit.frame_run import check_index, execute_rows, row_prompts, values_of
from qwenvl_kit.options import Config, Options
from qwenvl_kit.results import text_series
from qwenvl_kit.tasks.answer_forms import checked_text, constrained_prompts, row_constraints
from qwenvl_kit.tasks.extract import Extraction, check_constrainable
from qwenvl_kit.tasks.grounding import Grounding
from qwenvl_kit.tasks.grounding_options import grounding_defaults

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwenvl_kit.inference.backend import Control
    from qwenvl_kit.pipeline import Run
    from qwenvl_kit.tasks.box_parser import Kind
    from qwenvl_kit.tasks.grounding_prompts import Language
    from qwenvl_kit.types import Result


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

    return execute_rows(cells.tolist(), asked, config, control, shape, index=cells.index, checked=_each(checked_text))


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
        cells.tolist(), asked, config, control, extraction.frame, index=cells.index, checked=_each(extraction.checked)
    )


def ground_rows(
    cells: pd.Series,
    kind: Kind,
    labels: object,
    prompts: object,
    control: Control | None,
    options: Options,
    *,
    constrain: bool,
    language: Language | None,
) -> pd.DataFrame:
    """Return the boxes or points of objects, a row each.

    Parameters
    ----------
    cells : Series
        One image per row.
    kind : {"box", "point"}
        What is asked for.
    labels : object
        See `tasks.grounding_prompts.object_labels`.
    prompts : str, sequence of str or None
        As for `classify_rows`; None asks for the labels, unless the ``prompt`` option was passed.

    Raises
    ------
    ConfigError
        See `tasks.grounding.Grounding.of`.
    """
    is_own = prompts is not None or "prompt" in options
    config = Config(**options)
    config = config.replace(**grounding_defaults([config]))
    check_index("labels", labels, cells.index)
    grounding = Grounding.of(kind, labels, cells.index, config, constrain=constrain, language=language)
    asked = grounding.prompts(cells.tolist(), row_prompts(prompts, config.prompt, cells.index), is_own=is_own)
    return execute_rows(
        cells.tolist(), asked, config, control, grounding.frame, index=cells.index, checked=grounding.checked
    )


def _each(check: Callable[[Result], Result]) -> Callable[[Run], list[Result]]:
    return lambda run: [check(result) for result in run.results]
