"""Run a column with one prompt per row: one of all rows, of a template, of a pool or of the row itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import pandas as pd

from qwenvl_kit.captions.captioning import Captioning
from qwenvl_kit.captions.prompt_pool import choose_prompts
from qwenvl_kit.captions.templates import fill_template
from qwenvl_kit.frame_run import execute_rows, values_of
from qwenvl_kit.options import Config, Options
from qwenvl_kit.prompts import fill, is_missing
from qwenvl_kit.results import text_series
from qwenvl_kit.tasks.plan import Plan, plan_run

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import Control
    from qwenvl_kit.types import RowPrompt

_T = TypeVar("_T")
_PLAIN = Captioning()


def caption_texts(
    cells: pd.Series,
    prompts: object,
    control: Control | None,
    options: Options,
    *,
    captioning: Captioning = _PLAIN,
    frame: pd.DataFrame | None = None,
) -> pd.Series:
    """Return the captions of a column; parameters are those of `caption_rows`."""

    def shape(results: pd.DataFrame) -> pd.Series:
        return text_series(results, "caption").where(results["status"] == "ok")

    return caption_rows(cells, prompts, control, options, shape, captioning=captioning, frame=frame)


def run_rows(
    cells: pd.Series, prompts: object, control: Control | None, options: Options, *, frame: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return the result frame of a column; parameters are those of `caption_rows`."""
    return caption_rows(cells, prompts, control, options, lambda results: results, frame=frame)


def plan_rows(cells: pd.Series, prompts: object, options: Options, *, frame: pd.DataFrame | None = None) -> Plan:
    """Return the plan of a run; parameters are those of `caption_rows`."""
    config = Config(**options)
    return plan_run(cells, caption_prompts(cells, prompts, config, frame), config)


def caption_rows(
    cells: pd.Series,
    prompts: object,
    control: Control | None,
    options: Options,
    shape: Callable[[pd.DataFrame], _T],
    *,
    captioning: Captioning = _PLAIN,
    frame: pd.DataFrame | None = None,
) -> _T:
    """Caption a column, and return what `shape` makes of the result frame.

    Parameters
    ----------
    cells : Series
        One image, or list of images, per row.
    prompts : mapping, sequence of str or None
        Weights of prompts to choose from, or one prompt per row; None is the ``prompt`` option.
    control : Control or None
        Cancels and watches.
    options : dict
        Those of `Config`.
    shape : callable
        Makes the return value.
    captioning : Captioning
        What is done with the captions.
    frame : DataFrame, optional
        Whose columns a template may name.

    Raises
    ------
    ConfigError
        See `caption_prompts` and `Captioning.executor`.
    """
    config = Config(**options)
    asked = caption_prompts(cells, prompts, config, frame)
    flat = cells.tolist()
    executor = None if captioning == _PLAIN else captioning.executor(flat, config.image_src_type)
    return execute_rows(flat, asked, config, control, shape, index=cells.index, executor=executor)


def caption_prompts(
    cells: pd.Series, prompts: object, config: Config, frame: pd.DataFrame | None = None
) -> list[RowPrompt]:
    """Return the prompt of each row.

    A ``prompt`` option that was passed, and prompts of a pool, are templates. Prompts of rows are taken as they are.

    Raises
    ------
    ConfigError
        See `captions.templates.fill_template`, `captions.prompt_pool.choose_prompts` and `prompts.fill`.
    """
    frame = pd.DataFrame(index=cells.index) if frame is None else frame
    flat = cells.tolist()
    if isinstance(prompts, Mapping):
        chosen = choose_prompts(prompts, flat, config.seed, config.image_src_type)
        texts = {one: fill_template(one, frame, flat, config.image_src_type) for one in prompts}
        return [texts[one][row] for row, one in enumerate(chosen)]
    if isinstance(prompts, str):
        return [prompts] * len(flat)
    own = fill(values_of("prompts", prompts, cells.index), None, len(flat))
    if config.prompt is None or "prompt" not in config.explicit:
        return [one or config.prompt or None for one in own]
    if all(one is not None for one in own):
        return list(own)
    default = fill_template(config.prompt, frame, flat, config.image_src_type)
    return [
        (None if is_missing(other) else other) if one is None else one for one, other in zip(own, default, strict=True)
    ]
