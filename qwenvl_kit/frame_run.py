"""Run the rows of a column, and shape their results under its index; keeps the frame of the last run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import pandas as pd

from qwenvl_kit.errors import ConfigError
from qwenvl_kit.executors import execute
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.interrupts import InterruptGuard
from qwenvl_kit.options import Config, Options
from qwenvl_kit.prompts import fill
from qwenvl_kit.results import result_frame, return_or_raise, text_series, with_results
from qwenvl_kit.tasks.classify import Classification, blank_cells, check_classifiable, label_prompts, row_labels

if TYPE_CHECKING:
    from qwenvl_kit.executors.base import Executor
    from qwenvl_kit.pipeline import Run
    from qwenvl_kit.types import Result, RowPrompt

_T = TypeVar("_T")
_last: pd.DataFrame | Callable[[], pd.DataFrame] | None = None


def last_run() -> pd.DataFrame | None:
    """Return the frame of the last call in this process, also after an interrupt or an error.

    Returns
    -------
    DataFrame or None
        A frame as of ``df.vl.run``; None before the first call.

    Examples
    --------
    >>> import qwenvl_kit
    >>> frame = qwenvl_kit.last_run()
    """
    global _last
    known = _last
    if not callable(known):
        return known
    frame = known()
    if _last is known:  # else a newer run has ended in the meantime
        _last = frame
    return frame


def remember(frame: pd.DataFrame | Callable[[], pd.DataFrame] | None) -> None:
    """Set the frame of the last run, or a function that makes it."""
    global _last
    _last = frame


def run_texts(cells: pd.Series, prompts: object, name: str, control: Control | None, options: Options) -> pd.Series:
    """Return the answers to one prompt per cell, as a series of this name."""
    return _ask(cells, [prompts], Config(**options), control, lambda frame: text_series(frame, name))


def run_questions(
    cells: pd.Series, questions: Mapping[str, object], control: Control | None, options: Options
) -> pd.DataFrame:
    """Return the answers to several questions per cell, a column per question.

    Raises
    ------
    ConfigError
        `questions` is empty.
    """
    if not questions:
        raise ConfigError("The mapping of questions is empty. Pass at least one, such as {'name': 'question'}.")
    n_questions = len(questions)

    def columns(frame: pd.DataFrame) -> pd.DataFrame:
        picked = {name: frame["text"].iloc[at::n_questions] for at, name in enumerate(questions)}
        answers = pd.DataFrame({name: column.array for name, column in picked.items()}, index=cells.index)
        answers.attrs = frame.attrs
        return answers

    return _ask(cells, list(questions.values()), Config(**options), control, columns)


def classify_rows(
    cells: pd.Series,
    labels: object,
    prompts: object,
    classification: Classification,
    control: Control | None,
    options: Options,
) -> pd.DataFrame:
    """Return the likeliest label of each cell, with probabilities.

    Parameters
    ----------
    cells : Series
        One image, or list of images, per row.
    labels : sequence of str, or sequence or Series of sequences of str
        Those of all rows, or of each.
    prompts : str, sequence of str or None
        One for all rows, or one per row; None asks which label fits, unless the ``prompt`` option was passed.
    classification : Classification
        How labels are compared.

    Raises
    ------
    ConfigError
        See `tasks.classify.row_labels` and `tasks.classify.check_classifiable`.
    """
    config = Config(**options)
    check_classifiable(config)
    config = config.replace(max_caption_length=1)
    some = row_labels(values_of("labels", labels, cells.index), len(cells))
    classification.check_names(some)
    is_own = prompts is not None or "prompt" in config.explicit
    asked = label_prompts(row_prompts(prompts, config.prompt, cells.index), some, is_own=is_own)

    def shape(frame: pd.DataFrame) -> pd.DataFrame:
        blank = None if classification.prior is None else _run_blank(cells, frame, asked, config, control)
        return classification.frame(frame, some, blank)

    return execute_rows(cells.tolist(), asked, config, control, shape, index=cells.index)


def _run_blank(
    cells: pd.Series, frame: pd.DataFrame, prompts: Sequence[RowPrompt], config: Config, control: Control | None
) -> pd.DataFrame:
    """Return results for blank images in the place of those that were scored; equal ones are scored once."""
    cancel = Control() if control is None else Control(cancel=control.cancel)
    run = execute(blank_cells(cells.tolist(), frame), prompts, config, control=cancel)
    blank = result_frame(run, frame.index)
    return return_or_raise(run, blank, blank, on_error="keep")


def row_prompts(prompts: object, default: str | None, index: pd.Index) -> list[str | None]:
    """Return one prompt per row; `default` where it is missing.

    Raises
    ------
    ConfigError
        `prompts` has another index or length, or contains a value that is not a string.
    """
    if isinstance(prompts, str):
        return [prompts] * len(index)
    return fill(values_of("prompts", prompts, index), default, len(index))


def check_index(name: str, given: object, index: pd.Index) -> None:
    """Raise ConfigError for a Series under another index than that of the images."""
    if isinstance(given, pd.Series) and not given.index.equals(index):
        raise ConfigError(
            f"The index of {name} differs from the index of the images. Pass {name}.reindex(df.index), or "
            f"{name}.tolist() to match by position."
        )


def values_of(name: str, given: object, index: pd.Index) -> Sequence[object] | None:
    """Return values that are given for each row, without an index; see `check_index`."""
    check_index(name, given, index)
    return given.tolist() if isinstance(given, pd.Series) else cast("Sequence[object] | None", given)


def _ask(
    cells: pd.Series,
    prompts: list[object],
    config: Config,
    control: Control | None,
    shape: Callable[[pd.DataFrame], _T],
) -> _T:
    """Run each prompt on each cell; the prompts of a cell are adjacent rows."""
    n_prompts, index = len(prompts), cells.index
    filled = [row_prompts(one, config.prompt, index) for one in prompts]
    flat_prompts = [column[row] for row in range(len(cells)) for column in filled]
    flat_cells = [cell for cell in cells.tolist() for _ in range(n_prompts)]
    return execute_rows(
        flat_cells, flat_prompts, config, control, shape, index=index.repeat(n_prompts), n_prompts=n_prompts
    )


def execute_rows(
    cells: Sequence[object],
    prompts: Sequence[RowPrompt],
    config: Config,
    control: Control | None,
    shape: Callable[[pd.DataFrame], _T],
    *,
    index: pd.Index,
    n_prompts: int = 1,
    checked: Callable[[Run], list[Result]] | None = None,
    executor: Executor | None = None,
) -> _T:
    """Run a prompt on each cell; return what `shape` makes of the frame of `checked` results under `index`."""
    with InterruptGuard(len(cells), control) as guard:
        try:
            run = (executor or execute)(cells, prompts, config, control=guard.control)
            guard.hold()
        except KeyboardInterrupt:
            guard.hold()
            run = guard.rescued(config)
        if checked is not None:
            run = with_results(run, checked(run))
        remember(lambda: result_frame(run, index))
        frame = result_frame(run, index)
        remember(frame)
        results = shape(frame)
        run = guard.finished(run)
    return return_or_raise(run, frame, results, on_error=config.on_error, n_prompts=n_prompts)
