"""Run a column and trace the words of its answers to the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tqdm import tqdm

from qwenvl_kit.explain import Explanations
from qwenvl_kit.frame_run import execute_rows, row_prompts
from qwenvl_kit.options import Config, Options
from qwenvl_kit.tasks.explain import check_explainable, cost_of, explained_prompts

if TYPE_CHECKING:
    import pandas as pd

    from qwenvl_kit.attribution import Attribution
    from qwenvl_kit.inference.backend import Control


def explain_rows(
    cells: pd.Series, prompts: object, attribution: Attribution, control: Control | None, options: Options
) -> Explanations:
    """Return the explanation of each row's answer.

    Parameters
    ----------
    cells : Series
        One image, or list of images, per row.
    prompts : str, sequence of str or None
        One for all rows, or one per row.
    attribution : Attribution
        What is asked of the backend.

    Raises
    ------
    ConfigError
        See `tasks.explain.check_explainable`.
    """
    config = Config(**options)
    check_explainable(config)
    config = config.replace(store=None)
    asked = explained_prompts(row_prompts(prompts, config.prompt, cells.index), attribution)
    if config.progress and (cost := cost_of(attribution)):
        tqdm.write(cost)

    def shape(frame: pd.DataFrame) -> Explanations:
        return Explanations.of_run(frame, cells.tolist(), attribution.method, config.fetch)

    return execute_rows(cells.tolist(), asked, config, control, shape, index=cells.index)
