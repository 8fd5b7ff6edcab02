"""Compare answers over a grid of settings: the implementation of ``df.vl.compare``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from qwenvl_kit._warnings import warn
from qwenvl_kit.compare.comparison import Comparison
from qwenvl_kit.compare.grid import GridRun, RowPrompts, run_grid
from qwenvl_kit.compare.metrics import signature
from qwenvl_kit.compare.objects import Locate, with_marks
from qwenvl_kit.compare.settings import Setting, expand
from qwenvl_kit.compare.tidy import Choose, tidy
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
from qwenvl_kit.pipeline.run_record import RunClock, distinct_prompts, versions

__all__ = ["Comparison", "GridRun", "Setting", "compare", "expand", "run_grid", "tidy"]


def compare(
    cells: pd.Series,
    prompts: RowPrompts,
    vary: Mapping[str, Sequence[object]],
    options: Options,
    *,
    reference: Mapping[str, object] | None = None,
    truths: Sequence[str | None] | None = None,
    choose: Choose | None = None,
    locate: Locate | None = None,
    repeats: int = 1,
    control: Control | None = None,
    keep: Callable[[pd.DataFrame], None] = lambda _: None,
) -> Comparison:
    """Run every setting on every image; see ``df.vl.compare`` for the arguments.

    `prompts` and `choose` are those of `run_grid` and `tidy`. `locate` reads objects out of answers. `keep` gets the
    frame, also before an exception.
    """
    if not isinstance(repeats, int) or isinstance(repeats, bool) or repeats < 1:
        raise ConfigError(f"repeats={repeats!r} is invalid. It must be an integer of at least 1.")
    chrf_signature = signature()  # raises before anything runs where sacrebleu is missing
    settings = expand(vary, options, reference)
    clock = RunClock()
    run = run_grid(
        cells.tolist(),
        prompts,
        settings,
        repeats=repeats,
        control=control,
        shown=settings[0].config.progress,
    )
    objects = None if locate is None else locate(run, settings)
    frame = tidy(run, settings, cells, truths, choose)
    if objects is not None:
        frame = with_marks(frame, objects)
    n_wanted = len(cells) * len(settings) * repeats
    record = {
        "settings": run.records,
        "prompts": distinct_prompts([prompt for setting in settings for prompt in prompts(setting.config.prompt)]),
        "loads": run.loads,
        "seconds": round(run.seconds, 3),
        "memory": run.memory,
        "chrf": chrf_signature,
        "started": clock.started_at,
        "versions": versions(),
    }
    against = dict(reference) if reference is not None else dict(settings[0].values)
    fetch = settings[0].config.fetch
    comparison = Comparison(frame, tuple(vary), against, len(frame) == n_wanted, record, cells, fetch, objects)
    keep(frame)
    _end(run, comparison, n_wanted, on_error=settings[0].config.on_error)
    return comparison


def _end(run: GridRun, comparison: Comparison, n_wanted: int, *, on_error: str) -> None:
    """Raise the error of a grid, or warn of its failed rows; both carry the finished rows."""
    frame: Any = comparison.frame
    if run.failure is not None:
        if isinstance(run.failure, QwenVLError):
            raise run.failure
        broke = printable(str(run.failure), 1000)
        raise BackendFailed(f"The backend failed: {broke}. Finished rows are in .results.", comparison) from run.failure
    if run.interrupted:
        raise Interrupted(
            f"Interrupted after {len(frame)} of {n_wanted} rows. Finished rows are in .results.", comparison
        )
    failed = frame[frame["status"] == "error"]
    if not len(failed):
        return
    stages = ", ".join(f"{stage}: {n}" for stage, n in Counter(failed["stage"]).items())
    first = failed.iloc[0]
    label, error = printable(repr(first["label"]), 100), printable(str(first["error"]), 300)
    message = f"{len(failed)} of {len(frame)} rows failed ({stages}). First failure: {label}: {error}"
    if on_error == "raise":
        raise RowErrors(message, comparison)
    warn(f"{message}\nAll errors are in .frame.", RowErrorWarning)
