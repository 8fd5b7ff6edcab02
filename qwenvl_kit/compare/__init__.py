"""Pictures and a grid of settings in, a `Comparison` out: the grid behind ``df.vl.compare``.

It knows columns and settings; what a model is, only the engine below it knows.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from qwenvl_kit.compare.comparison import Comparison
from qwenvl_kit.compare.grid import GridRun, run_grid
from qwenvl_kit.compare.metrics import signature
from qwenvl_kit.compare.settings import Setting, expand
from qwenvl_kit.compare.tidy import tidy
from qwenvl_kit.errors import (
    BackendFailed,
    ConfigError,
    Interrupted,
    QwenVLError,
    RowErrors,
    RowErrorWarning,
    printable,
)
from qwenvl_kit.inference.backend import Control
from qwenvl_kit.options import Options

__all__ = ["Comparison", "GridRun", "Setting", "compare", "expand", "run_grid", "tidy"]


def compare(
    cells: pd.Series,
    prompts: Sequence[str | None] | None,
    vary: Mapping[str, Sequence[object]],
    options: Options,
    *,
    reference: Mapping[str, object] | None = None,
    truths: Sequence[str | None] | None = None,
    repeats: int = 1,
    control: Control | None = None,
    keep: Callable[[pd.DataFrame], None] = lambda _: None,
    stacklevel: int = 2,
) -> Comparison:
    """Ask every picture under every setting; see ``df.vl.compare`` for the meaning of each argument.

    `keep` gets the frame also where an exception follows.
    """
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise ConfigError(f"repeats must be a whole number of at least 1; got {repeats!r}; pass 1 or more")
    chrf_signature = signature()  # a missing sacrebleu is told before anything runs
    settings = expand(vary, options, reference)
    gave = run_grid(
        cells.tolist(),
        prompts,
        settings,
        repeats=repeats,
        control=control,
        shown=settings[0].config.progress,
        stacklevel=stacklevel + 1,
    )
    frame = tidy(gave, settings, cells, truths)
    n_wanted = len(cells) * len(settings) * repeats
    record = {
        "settings": gave.records,
        "loads": gave.loads,
        "seconds": round(gave.seconds, 3),
        "memory": gave.memory,
        "chrf": chrf_signature,
    }
    against = dict(reference) if reference is not None else dict(settings[0].values)
    found = Comparison(frame, tuple(vary), against, len(frame) == n_wanted, record)
    keep(frame)
    _end(gave, found, n_wanted, on_error=settings[0].config.on_error, stacklevel=stacklevel + 1)
    return found


def _end(gave: GridRun, found: Comparison, n_wanted: int, *, on_error: str, stacklevel: int) -> None:
    """Raise or warn of what the grid ended with; what is done travels along."""
    frame: Any = found.frame
    if gave.failure is not None:
        if isinstance(gave.failure, QwenVLError):
            raise gave.failure
        broke = printable(str(gave.failure), 1000)
        raise BackendFailed(f"the backend broke: {broke}; .results holds finished rows", found) from gave.failure
    if gave.interrupted:
        raise Interrupted(f"interrupted with {len(frame)} of {n_wanted} rows done; they are in .results", found)
    failed = frame[frame["status"] == "error"]
    if not len(failed):
        return
    stages = ", ".join(f"{stage}: {n}" for stage, n in Counter(failed["stage"]).items())
    first = failed.iloc[0]
    label, error = printable(repr(first["label"]), 100), printable(str(first["error"]), 300)
    message = f"{len(failed)} of {len(frame)} rows failed ({stages}); the first: {label}: {error}"
    if on_error == "raise":
        raise RowErrors(message, found)
    warnings.warn(f"{message}\nAll are in .frame", RowErrorWarning, stacklevel=stacklevel)
