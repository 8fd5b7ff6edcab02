"""Run the rows of a column, and shape their results under its index; keeps the frame of the last run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import pandas as pd

from qwenvl_kit.compare import Comparison, compare
from qwenvl_kit.errors import ConfigError
from qwenvl_kit.executors import execute
from qwenvl_kit.interrupts import InterruptGuard
from qwenvl_kit.options import Config, Options
from qwenvl_kit.prompts import fill
from qwenvl_kit.results import result_frame, return_or_raise, text_series
from qwenvl_kit.tasks.plan import Plan, plan_run

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import Control
    from qwenvl_kit.pipeline import Run

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


def run_rows(cells: pd.Series, prompts: object, control: Control | None, options: Options) -> pd.DataFrame:
    """Return the result frame of one prompt per cell."""
    return _execute(cells, [prompts], Config(**options), control, lambda frame: frame)


def plan_rows(cells: pd.Series, prompts: object, options: Options) -> Plan:
    """Return the plan of a run of one prompt per cell."""
    config = Config(**options)
    return plan_run(cells, row_prompts(prompts, config.prompt, cells.index), config)


def run_texts(cells: pd.Series, prompts: object, name: str, control: Control | None, options: Options) -> pd.Series:
    """Return the answers to one prompt per cell, as a series of this name."""
    return _execute(cells, [prompts], Config(**options), control, lambda frame: text_series(frame, name))


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

    return _execute(cells, list(questions.values()), Config(**options), control, columns)


def compare_rows(
    cells: pd.Series,
    prompts: object,
    vary: Mapping[str, Sequence[object]],
    options: Options,
    *,
    reference: Mapping[str, object] | None,
    truth: object,
    repeats: int,
    control: Control | None,
) -> Comparison:
    """Return the comparison of all combinations of settings on all cells; `prompts` are left out where they vary."""
    return compare(
        cells,
        None if "prompt" in vary else row_prompts(prompts, Config(**options).prompt, cells.index),
        vary,
        options,
        reference=reference,
        truths=None if truth is None else fill(_values("truth", truth, cells.index), None, len(cells)),
        repeats=repeats,
        control=control,
        keep=remember,
    )


def row_prompts(prompts: object, default: str | None, index: pd.Index) -> list[str | None]:
    """Return one prompt per row; `default` where it is missing.

    Raises
    ------
    ConfigError
        `prompts` has another index or length, or contains a value that is not a string.
    """
    if isinstance(prompts, str):
        return [prompts] * len(index)
    return fill(_values("prompts", prompts, index), default, len(index))


def _values(name: str, given: object, index: pd.Index) -> Sequence[object] | None:
    if not isinstance(given, pd.Series):
        return cast("Sequence[object] | None", given)
    if not given.index.equals(index):
        raise ConfigError(
            f"The index of {name} differs from the index of the images. Pass {name}.reindex(df.index), or "
            f"{name}.tolist() to match by position."
        )
    return given.tolist()


def _execute(
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
    with InterruptGuard(len(flat_cells), control) as guard:
        try:
            run = execute(flat_cells, flat_prompts, config, control=guard.control)
            guard.hold()
        except KeyboardInterrupt:
            guard.hold()
            run = guard.rescued(config)
        remember(functools.partial(_frame, run, index, n_prompts))
        frame = _frame(run, index, n_prompts)
        remember(frame)
        results = shape(frame)
        run = guard.finished(run)
    return return_or_raise(run, frame, results, on_error=config.on_error, n_prompts=n_prompts)


def _frame(run: Run, index: pd.Index, n_prompts: int) -> pd.DataFrame:
    return result_frame(run, index.repeat(n_prompts))
