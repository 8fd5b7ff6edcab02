"""Columns of a schema: what each row is asked, and what its answer holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from qwenvl_kit.errors import ConfigError, RowError, printable
from qwenvl_kit.inference.constraints import check_constraint
from qwenvl_kit.tasks.field_values import fit
from qwenvl_kit.tasks.lenient_json import ParsedJson, parse_json
from qwenvl_kit.tasks.schema import AnswerSchema, Field, read_schema
from qwenvl_kit.tasks.token_spans import Span, overlapping, token_spans
from qwenvl_kit.types import Constraint, Prompt, Result

if TYPE_CHECKING:
    from qwenvl_kit.options import Config

_TEXT = pd.StringDtype(na_value=np.nan)
_OWN = ("raw", "repaired", "status", "error")  # columns beside the schema's
_SHOWN = 60
_CUT = {"length": "max_caption_length", "repetition": "stop_repetition"}


@dataclass(frozen=True, slots=True)
class Extraction:
    """How answers become columns.

    Attributes
    ----------
    schema : AnswerSchema
        Of an answer.
    constrain : bool
        Answers are constrained while they are generated; else read leniently afterwards.
    flatten : bool
        Properties of nested objects have columns of their own, with dotted names.
    """

    schema: AnswerSchema
    constrain: bool = True
    flatten: bool = False

    @classmethod
    def of(cls, schema: object, config: Config, *, constrain: bool = True, flatten: bool = False) -> Extraction:
        """Check a schema against the options of a call, before anything loads.

        Raises
        ------
        ConfigError
            The schema, or an option with it, is invalid; see `read_schema` and `check_constrainable`.
        MissingExtra
            llguidance is not installed.
        """
        found = cls(read_schema(schema), constrain, flatten)
        names = {one.name for one in found.fields}
        own = {*_OWN, *(f"{name}_confidence" for name in names if config.logprobs is not None)}
        if taken := sorted(names & own):
            raise ConfigError(f"The field {taken[0]!r} is also a column of the result. Rename it in the schema.")
        if found.constraint is not None:
            check_constrainable(config)
            check_constraint(found.constraint)
        return found

    @property
    def fields(self) -> list[Field]:
        """What becomes a column."""
        return self.schema.fields(flatten=self.flatten)

    @property
    def constraint(self) -> Constraint | None:
        """What answers must match while they are generated."""
        return Constraint("json", self.schema.source) if self.constrain else None

    def prompts(self, texts: Sequence[str | None], *, is_own: bool) -> list[Prompt | None]:
        """Return each row's prompt with the constraint; a prompt that names the fields unless the caller wrote them."""
        asked = texts if is_own else [self.schema.prompt()] * len(texts)
        return [None if text is None else Prompt(text, constraint=self.constraint) for text in asked]

    def checked(self, result: Result) -> Result:
        """Return a result as an error, with its text, where the answer is cut or holds no JSON."""
        if result.status != "ok":
            return result
        parsed = self._parsed(result.text, result.finish_reason)
        if parsed is None:
            text = printable(repr(result.text), _SHOWN)
            return failed_answer(result, f"The answer holds no JSON: {text}. Use constrain=True, or another prompt.")
        if parsed.cut is not None and result.finish_reason != "stop":
            return truncated(result)
        return result

    def frame(self, results: pd.DataFrame) -> pd.DataFrame:
        """Return the columns of the schema, ``raw``, ``repaired``, ``status`` and ``error``.

        With log-probabilities, a column such as ``count_confidence`` follows those of the schema for each field.

        Parameters
        ----------
        results : DataFrame
            Of a run whose results are `checked`.
        """
        rows = [
            _Row(self, self._parsed(text, reason))
            for text, reason in zip(results["text"].tolist(), results["finish_reason"].tolist(), strict=True)
        ]
        columns: dict[str, pd.Series] = {
            one.name: _column([row.values[at] for row in rows], one.dtype, results.index)
            for at, one in enumerate(self.fields)
        }
        if "logprobs" in results:
            confidences = [
                _confidences(row, text, tokens, self.fields)
                for row, text, tokens in zip(rows, results["text"].tolist(), results["logprobs"].tolist(), strict=True)
            ]
            for at, one in enumerate(self.fields):
                values = [row[at] for row in confidences]
                columns[f"{one.name}_confidence"] = pd.Series(values, index=results.index, dtype="Float64")
        columns["raw"] = results["text"]
        columns["repaired"] = pd.Series([row.repaired for row in rows], index=results.index, dtype=_TEXT)
        columns |= {name: results[name] for name in ("status", "error")}
        frame = pd.DataFrame(columns, index=results.index)
        frame.attrs = {**results.attrs, "extract": {"schema": self.schema.source, "constrain": self.constrain}}
        return frame

    def _parsed(self, text: object, finish_reason: object) -> ParsedJson | None:
        return parse_json(text, is_cut=finish_reason != "stop") if isinstance(text, str) else None


def _confidences(row: _Row, text: object, tokens: object, fields: Sequence[Field]) -> list[float | None]:
    """Return the probability of the tokens that wrote each field, before constraints and temperature."""
    spans = None
    if isinstance(text, str) and isinstance(tokens, list):
        spans = token_spans([one["token"] for one in tokens], text)
    if spans is None:
        return [None] * len(fields)
    logprobs = [one["logprob"] for one in cast("list[dict[str, Any]]", tokens)]
    found: list[float | None] = []
    for field, value in zip(fields, row.values, strict=True):
        written = overlapping(spans, row.spans_of(field)) if value is not None else []
        found.append(math.exp(math.fsum(logprobs[at] for at in written)) if written else None)
    return found


class _Row:
    """The values of an answer, one per field, and what was done to read them."""

    def __init__(self, extraction: Extraction, parsed: ParsedJson | None) -> None:
        self._repairs: dict[str, None] = {}
        self._spans = {} if parsed is None else parsed.spans
        self._is_object = extraction.schema.is_object
        if parsed is None:
            self.values: list[Any] = [None] * len(extraction.fields)
            return
        self._repairs = dict.fromkeys(parsed.repairs)
        if parsed.cut is not None:
            place = ".".join(map(str, parsed.cut)) or "the answer"
            self._repairs[f"ends within {place}; kept what is complete"] = None
        value = parsed.value if extraction.schema.is_object else {"value": parsed.value}
        self.values = [self._value(value, one, parsed) for one in extraction.fields]

    def spans_of(self, field: Field) -> list[Span]:
        """Return where the values of a field stand in the text."""
        path = field.path if self._is_object else field.path[1:]
        return [span for place, span in self._spans.items() if place[: len(path)] == tuple(path)]

    @property
    def repaired(self) -> str | None:
        """What was repaired, for a column."""
        return "; ".join(self._repairs) or None

    def _value(self, value: Any, field: Field, parsed: ParsedJson) -> Any:
        for name in field.path:
            if not isinstance(value, Mapping) or name not in value:
                if parsed.cut is None and value is not None:
                    self._repairs[f"no {field.name}"] = None
                return None
            value = value[name]
        kept, repair = fit(value, field)
        if repair is not None:
            self._repairs[f"{field.name}: {repair}"] = None
        return kept


def check_constrainable(config: Config) -> None:
    """Raise ConfigError for options of the caller under which no answer can be constrained."""
    if config.backend == "echo":
        raise ConfigError(
            "backend='echo' generates no tokens, so its answers cannot be constrained. Use backend='torch', 'onnx' or "
            "'openai'."
        )
    if config.num_beams > 1:
        raise ConfigError(
            f"Beam search does not support constrained answers (num_beams={config.num_beams}). Use num_beams=1."
        )
    if config.beginning:
        raise ConfigError(
            f"start_with={config.start_with!r} is invalid for constrained answers, which match their form as a whole. "
            "Leave it out."
        )


def truncated(result: Result) -> Result:
    """Return a cut answer as that row's error; its text stays."""
    option = _CUT.get(result.finish_reason or "", "a limit")
    return failed_answer(
        result, f"truncated: {option} ended the answer after {result.new_tokens} tokens. Raise max_caption_length."
    )


def failed_answer(result: Result, message: str) -> Result:
    """Return an answer as that row's error; its text stays."""
    error = RowError("generate", message)
    return replace(result, status="error", error=error.message, stage=error.stage)


def _column(values: list[Any], dtype: str, index: pd.Index) -> pd.Series:
    if dtype == "object":
        column = pd.Series([None] * len(values), index=index, dtype=object)
        column[:] = np.fromiter(values, dtype=object, count=len(values))
        return column
    return pd.Series(values, index=index, dtype=_TEXT if dtype == "string" else dtype)
