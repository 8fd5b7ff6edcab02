"""Plan a run: tokens of each row, memory, time and what does not fit, before anything loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qwenvl_kit._memory import in_words
from qwenvl_kit._words import duration
from qwenvl_kit.checkpoints.resolve import ResolvedConfig, warn_ignored_options
from qwenvl_kit.executors.specs import make_spec
from qwenvl_kit.html import render
from qwenvl_kit.tasks.plan_fit import Case, case_of, problems
from qwenvl_kit.tasks.plan_rows import PlannedRow, plan_rows
from qwenvl_kit.tasks.plan_time import PlannedTime, planned_time

if TYPE_CHECKING:
    from qwenvl_kit.inference.backend import BackendSpec
    from qwenvl_kit.inference.processor import InputProcessor
    from qwenvl_kit.options import Config
    from qwenvl_kit.types import RowPrompt

_TEXT = pd.StringDtype(na_value=np.nan)
_COLUMNS: dict[str, Any] = {
    "width": "Int64",
    "height": "Int64",
    "resized_width": "Int64",
    "resized_height": "Int64",
    "visual_tokens": "Int64",
    "prompt_tokens": "Int64",
    "room": "Int64",
    "status": _TEXT,
    "stage": _TEXT,
    "error": _TEXT,
}
_HTML = (
    "<table><tbody>{% for name, text in lines %}"
    "<tr><th style='text-align:left;vertical-align:top'>{{ name }}</th>"
    "<td style='text-align:left;white-space:pre-line'>{{ text }}</td></tr>"
    "{% endfor %}</tbody></table>"
)


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run would take; `str` prints it, and a notebook shows it as a table.

    Attributes
    ----------
    rows : DataFrame
        Under the frame's index: ``width`` and ``height`` of the upright image, ``resized_width`` and
        ``resized_height`` as the model sees it (of a row's first image), ``visual_tokens`` of all its images,
        ``prompt_tokens`` with them, ``room`` (tokens of prompt and answer), and ``status``, ``stage``, ``error`` as of
        ``df.vl.run``. With a calibration also ``seconds`` of image and prompt.
    memory : DataFrame
        A row per device and part, with its ``bytes`` at most.
    free : dict of str to int
        Bytes that each device has free now; devices that do not say are left out.
    time : PlannedTime or None
        None until ``qwenvl-kit bench`` has measured this model on this machine.
    problems : tuple of str
        What does not fit, and which options make it fit.
    resolved : ResolvedConfig
        The options as they would run.
    """

    rows: pd.DataFrame
    memory: pd.DataFrame
    free: Mapping[str, int]
    time: PlannedTime | None
    problems: tuple[str, ...]
    resolved: ResolvedConfig = field(repr=False)

    @property
    def fits(self) -> bool | None:
        """Whether memory suffices; None where no device says what is free."""
        if self.problems:
            return False
        return True if self.free or self.memory.empty else None

    @property
    def peak(self) -> dict[str, int]:
        """Bytes of each device at most, this process included."""
        return {str(at): int(n) for at, n in self.memory.groupby("device", sort=False)["bytes"].sum().items()}

    def __str__(self) -> str:
        return "\n".join(f"{name:8}{text.replace(chr(10), chr(10) + ' ' * 8)}" for name, text in self._lines())

    def _repr_html_(self) -> str:
        return str(render(_HTML, lines=list(self._lines())))

    def _lines(self) -> list[tuple[str, str]]:
        resolved = self.resolved
        model = Path(resolved.model).name
        return [
            ("model", f"{model} on {resolved.backend}, {resolved.device}, {resolved.dtype}"),
            ("rows", _rows_in_words(self.rows)),
            ("memory", self._memory_in_words()),
            ("time", self._time_in_words()),
            ("fits", "\n".join(self.problems) or ("yes" if self.fits else "unknown: no device says what is free")),
        ]

    def _memory_in_words(self) -> str:
        if self.memory.empty:
            return "no model"
        lines = [f"{at}: at most {in_words(n)}{self._free_in_words(at)}" for at, n in self.peak.items()]
        parts = zip(self.memory["part"], self.memory["bytes"].tolist(), strict=True)
        return "\n".join([*lines, *(f"  {in_words(n_bytes):>9}  {part}" for part, n_bytes in parts)])

    def _free_in_words(self, device: str) -> str:
        return f"; {in_words(self.free[device])} free now" if device in self.free else ""

    def _time_in_words(self) -> str:
        if self.memory.empty:
            return "no model"
        if self.time is None:
            return f"unknown: run qwenvl-kit bench --model-name {self.resolved.model}"
        vision, prompts, answers = map(duration, (self.time.vision_s, self.time.prompt_s, self.time.decode_s))
        return (
            f"at most {duration(self.time.total_s)}: images {vision}, prompts {prompts}, answers up to {answers} "
            f"(measured {self.time.measured_at})"
        )


def plan_run(cells: pd.Series, prompts: Sequence[RowPrompt], config: Config) -> Plan:
    """Plan the run of one prompt per cell, from configs and the headers of images.

    Parameters
    ----------
    cells : Series
        One image, or list of images, per row.
    prompts : sequence of str, RowError or None
        One per row.
    config : Config
        The options of the run.

    Raises
    ------
    ConfigError, ModelNotFound, CheckpointError
        As of a run, before anything loads.
    """
    spec = make_spec(config)
    warn_ignored_options(config, spec.resolved)
    tokens = _Tokens(_processor(spec), config)
    rows = plan_rows(cells.tolist(), prompts, config, spec.geometry, tokens.counter, tokens.check)
    case = case_of(spec, rows, config)
    in_flight = 1 if case is None else case.rows_in_flight
    time = planned_time(rows, spec, rows_in_flight=in_flight, max_new_tokens=config.max_caption_length)
    return Plan(
        rows=_row_frame(rows, cells.index, config.max_caption_length, time),
        memory=_memory_frame(case),
        free={} if case is None else case.free,
        time=time,
        problems=() if case is None else tuple(problems(case)),
        resolved=spec.resolved,
    )


class _Tokens:
    """Count the tokens of texts, where there is a tokenizer."""

    def __init__(self, processor: InputProcessor | None, config: Config) -> None:
        self._processor, self._config = processor, config
        self.counter = None if processor is None else self._count

    def check(self, n_tokens: int) -> None:
        """Raise a RowError for a prompt that exceeds the model's context with its answer."""
        if self._processor is not None:
            self._processor.check_context(n_tokens, self._config.max_caption_length)

    def _count(self, n_images: int, prompt: str) -> int:
        assert self._processor is not None
        return self._processor.count_text_tokens(n_images, prompt, self._config.system_prompt, self._config.beginning)


def _processor(spec: BackendSpec) -> InputProcessor | None:
    checkpoint = spec.checkpoint
    if checkpoint is None:
        return None
    from qwenvl_kit.checkpoints.loading import load_config, load_processor
    from qwenvl_kit.inference.processor import InputProcessor

    vocab_size = int(load_config(checkpoint).text_config.vocab_size)
    return InputProcessor(load_processor(checkpoint), checkpoint.context, vocab_size=vocab_size)


def _memory_frame(case: Case | None) -> pd.DataFrame:
    parts = [] if case is None else case.parts()
    return pd.DataFrame(
        {
            "device": pd.Series([part.device for part in parts], dtype=_TEXT),
            "part": pd.Series([part.name for part in parts], dtype=_TEXT),
            "bytes": pd.Series([part.n_bytes for part in parts], dtype="int64"),
        }
    )


def _row_frame(
    rows: Sequence[PlannedRow], index: pd.Index, max_new_tokens: int, time: PlannedTime | None
) -> pd.DataFrame:
    records = [_record(row, max_new_tokens) for row in rows]
    columns = {
        name: pd.Series([record.get(name, pd.NA) for record in records], index=index, dtype=dtype)
        for name, dtype in _COLUMNS.items()
    }
    frame = pd.DataFrame(columns, index=index)
    return frame if time is None else frame.assign(seconds=time.row_s)


def _record(row: PlannedRow, max_new_tokens: int) -> dict[str, Any]:
    found: dict[str, Any] = {"status": row.status}
    if row.sizes:
        found["height"], found["width"] = row.sizes[0]
    if row.resized:
        found["resized_height"], found["resized_width"] = row.resized[0]
        found["visual_tokens"] = row.visual_tokens
    if row.prompt_tokens is not None:
        found |= {"prompt_tokens": row.prompt_tokens, "room": row.prompt_tokens + max_new_tokens}
    if row.error is not None:
        found |= {"stage": row.error.stage, "error": row.error.message}
    return found


def _rows_in_words(rows: pd.DataFrame) -> str:
    counts = rows["status"].value_counts()
    others = ", ".join(f"{n} {status}" for status, n in counts.items() if status != "ok")
    lines = [f"{int(counts.get('ok', 0))} to run{', ' + others if others else ''}"]
    for name, what in (("visual_tokens", "visual tokens"), ("prompt_tokens", "prompt tokens"), ("room", "room")):
        values = rows[name].dropna()
        if len(values):
            lines.append(f"{what}: {values.min()} to {values.max()} a row, {values.sum()} in all")
    return "\n".join(lines)
