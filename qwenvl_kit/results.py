"""Make frames and series of a run, and raise its error or warn of its failed rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np
import pandas as pd

from qwenvl_kit._warnings import warn
from qwenvl_kit.errors import (
    BackendFailed,
    Interrupted,
    QwenVLError,
    QwenVLWarning,
    RowErrors,
    RowErrorWarning,
    printable,
)

if TYPE_CHECKING:
    from qwenvl_kit.options import OnError
    from qwenvl_kit.pipeline import Run
    from qwenvl_kit.types import Result

_T = TypeVar("_T")
_TEXT = pd.StringDtype(na_value=np.nan)  # pandas' own type for texts, missing ones included
_COLUMNS: dict[str, Any] = {
    "text": _TEXT,
    "status": _TEXT,
    "error": _TEXT,
    "stage": _TEXT,
    "finish_reason": _TEXT,
    "prompt_tokens": "Int64",
    "new_tokens": "Int64",
    "height": "Int64",
    "width": "Int64",
    "source_height": "Int64",
    "source_width": "Int64",
    "seconds": "float64",
    "cached": "bool",
    "flag": _TEXT,
}
_LABEL_COLUMNS = ("label_logprobs", "label_tokens")  # where prompts had labels
_FINISHED = "Finished rows are in .results and in qwenvl_kit.last_run()."
_SHOWN_ERRORS = 5
# The frame has the full errors. A message of many lines hides the cells after it in a notebook.
_LONGEST_ERROR = 300
_LONGEST_LABEL = 100
_LONGEST_FAILURE = 1000


def result_frame(run: Run, index: pd.Index) -> pd.DataFrame:
    """Return one row per result under `index`; ``attrs`` hold the record. Empty frames have the same dtypes.

    Returns
    -------
    DataFrame
        Columns ``text, status, error, stage, finish_reason, prompt_tokens, new_tokens, height, width,
        source_height, source_width, seconds, cached, flag``; with labels also ``label_logprobs, label_tokens``, tuples
        in the order of the labels; with ``logprobs`` also ``logprob_sum, logprob_mean, logprobs``; of explained
        answers also ``maps``.
    """
    assert len(run.results) == len(index), "one result per row"
    columns = {
        name: pd.Series([getattr(result, name) for result in run.results], index=index, dtype=dtype)
        for name, dtype in _COLUMNS.items()
    }
    frame = pd.DataFrame(columns, index=index)
    if any(result.label_logprobs is not None for result in run.results):
        for name in _LABEL_COLUMNS:
            frame[name] = pd.Series([getattr(result, name) for result in run.results], index=index, dtype=object)
    if any(result.maps is not None for result in run.results):
        frame["maps"] = pd.Series([result.maps for result in run.results], index=index, dtype=object)
    if run.record.get("effective", {}).get("logprobs") is not None:
        frame = frame.assign(**_logprob_columns(run.results, index))
    frame.attrs.update(run.record)
    return frame


def _logprob_columns(results: Sequence[Result], index: pd.Index) -> dict[str, pd.Series]:
    """Return sum and mean of each answer's log-probabilities, and its tokens with theirs; null where there are none."""
    given = [result.token_logprobs or None for result in results]
    sums = [None if one is None else math.fsum(one) for one in given]
    means = [None if one is None or total is None else total / len(one) for one, total in zip(given, sums, strict=True)]
    tokens = pd.Series([_tokens(result) for result in results], index=index, dtype=object)
    return {
        "logprob_sum": pd.Series(sums, index=index, dtype="Float64"),
        "logprob_mean": pd.Series(means, index=index, dtype="Float64"),
        "logprobs": tokens,
    }


def _tokens(result: Result) -> list[dict[str, Any]] | None:
    """Return the tokens of an answer, each with its log-probability and the likeliest ones in its place."""
    texts, logprobs = result.token_texts, result.token_logprobs
    if not texts or logprobs is None:
        return None
    likeliest = _pairs(result.alternative_texts or (), result.alternative_logprobs or ())
    n = len(likeliest) // len(texts)
    return [{**one, "likeliest": likeliest[at * n : (at + 1) * n]} for at, one in enumerate(_pairs(texts, logprobs))]


def _pairs(texts: Sequence[str], logprobs: Sequence[float]) -> list[dict[str, Any]]:
    return [{"token": text, "logprob": logprob} for text, logprob in zip(texts, logprobs, strict=True)]


def with_results(run: Run, results: list[Result]) -> Run:
    """Return a run with other results, counted anew in its record."""
    rows = dict(Counter(result.status for result in results))
    return replace(run, results=results, record={**run.record, "rows": rows})


def text_series(frame: pd.DataFrame, name: str) -> pd.Series:
    """Return the texts of a result frame as a series."""
    texts = frame["text"].rename(name)
    texts.attrs.update(frame.attrs)
    return texts


def return_or_raise(run: Run, frame: pd.DataFrame, results: _T, *, on_error: OnError, n_prompts: int = 1) -> _T:
    """Return `results`, or raise the error of a run with them; warn of failed rows.

    Parameters
    ----------
    run : Run
        The finished run.
    frame : DataFrame
        Its `result_frame`.
    results : object
        The return value of the call.
    on_error : {"keep", "raise"}
        Whether failed rows raise.
    n_prompts : int
        Results per row of the caller's frame.

    Raises
    ------
    BackendFailed
        The backend failed.
    Interrupted
        Ctrl-C ended the run.
    RowErrors
        Rows failed under ``on_error="raise"``.
    """
    if run.failure is not None:
        _raise_failure(run, run.failure, results)
    if run.interrupted:
        done = sum(result.status != "cancelled" for result in run.results)
        message = f"Interrupted after {done} of {len(run.results)} rows. {_FINISHED}"
        raise Interrupted(message, results)
    failed = frame["status"].to_numpy() == "error"
    if failed.any():
        message = _message(frame, np.flatnonzero(failed), n_prompts)
        if on_error == "raise":
            raise RowErrors(message, results)
        warn(f"{message}\nThey are null here. qwenvl_kit.last_run() has every row's error.", RowErrorWarning)
    return results


def _raise_failure(run: Run, failure: BaseException, results: object) -> NoReturn:
    if isinstance(failure, QwenVLError | QwenVLWarning):
        failure.results = results
        failure.add_note(_FINISHED)
        raise failure
    reason = printable(str(failure), _LONGEST_FAILURE)
    message = f"The {run.record['effective']['backend']} backend failed: {reason}. Finished rows are in .results."
    raise BackendFailed(message, results) from failure


def _message(frame: pd.DataFrame, failed: np.ndarray[tuple[int], np.dtype[np.intp]], n_prompts: int) -> str:
    stages = Counter(str(stage) for stage in frame["stage"].iloc[failed])
    counts = ", ".join(f"{stage}: {n}" for stage, n in stages.items())
    lines = [
        f"  row {at // n_prompts} (index {_label(frame.index, at)}), {frame['stage'].iloc[at]}: "
        f"{printable(str(frame['error'].iloc[at]), _LONGEST_ERROR)}"
        for at in failed[:_SHOWN_ERRORS]
    ]
    more = [f"  … and {len(failed) - _SHOWN_ERRORS} more"] if len(failed) > _SHOWN_ERRORS else []
    return "\n".join([f"{len(failed)} of {len(frame)} rows failed ({counts})", *lines, *more])


def _label(index: pd.Index, at: int) -> str:
    label = index[at]
    return printable(repr(label.item() if isinstance(label, np.generic) else label), _LONGEST_LABEL)
