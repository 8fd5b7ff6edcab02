"""Check the form of answers to a question, and make the constraint of each row: a pattern, or one of some texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from qwenvl_kit.errors import ConfigError, RowError, printable
from qwenvl_kit.inference.constraints import check_constraint
from qwenvl_kit.tasks.classify import check_classifiable, label_prompts, row_labels
from qwenvl_kit.tasks.extract import Extraction, check_constrainable, truncated
from qwenvl_kit.types import Constraint, Prompt

if TYPE_CHECKING:
    from qwenvl_kit.options import Config
    from qwenvl_kit.types import Result, RowPrompt

_SHOWN = 60


def check_form(question: object, options: object, regex: object, choices: object) -> str | None:
    """Return which of the three gives the form of an answer, or None.

    Raises
    ------
    ConfigError
        There is more than one, or one with several questions.
    """
    form = _only_one({"options": options, "regex": regex, "choices": choices})
    if form is not None and isinstance(question, Mapping):
        raise ConfigError(f"{form} belong to one question. Call ask once for each of the questions.")
    return form


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """One form for all answers of a call: free text, a label, JSON of a schema, or a text that matches a constraint.

    Attributes
    ----------
    labels : tuple of str
        Answers to choose from, if there are any.
    extraction : Extraction or None
        Of a schema.
    constraint : Constraint or None
        Of a regular expression or choices.
    """

    labels: tuple[str, ...] = ()
    extraction: Extraction | None = None
    constraint: Constraint | None = None

    @classmethod
    def of(cls, config: Config, *, labels: object, schema: object, regex: str | None, choices: object) -> AnswerForm:
        """Check a form against the options of a call.

        Raises
        ------
        ConfigError
            There is more than one, it is invalid, or an option excludes it.
        MissingExtra
            llguidance is not installed.
        """
        given = {"labels": labels, "schema": schema, "regex": regex, "choices": choices}
        form = _only_one(given)
        if form is None:
            return cls()
        if form == "labels":
            check_classifiable(config)
            return cls(labels=row_labels(labels, 1)[0])
        if form == "schema":
            return cls(extraction=Extraction.of(schema, config))
        check_constrainable(config)
        (constraint,) = row_constraints(regex, choices, 1)
        if isinstance(constraint, RowError):
            raise ConfigError("choices is empty. Pass at least one text.")
        return cls(constraint=constraint)

    def prompts(self, texts: Sequence[str | None], *, is_own: bool) -> list[RowPrompt]:
        """Return the prompt of each row; where the caller did not write them, the labels or fields are asked for."""
        if self.labels:
            return list(label_prompts(texts, [self.labels] * len(texts), is_own=is_own))
        if self.extraction is not None:
            return list(self.extraction.prompts(texts, is_own=is_own))
        return [text and Prompt(text, constraint=self.constraint) if self.constraint else text for text in texts]

    def checked(self, result: Result) -> Result:
        """Return a result as an error, with its text, where it has not the form."""
        if self.extraction is not None:
            return self.extraction.checked(result)
        return result if self.constraint is None else checked_text(result)


def row_constraints(regex: str | None, choices: object, n_rows: int) -> list[Constraint | RowError]:
    """Return the constraint of each row: a regular expression, else choices; the error of a row without choices.

    Parameters
    ----------
    regex : str or None
        Of all rows.
    choices : sequence of str, or sequence of sequences of str
        Of all rows, or a list per row; None, NaN and an empty list are missing.
    n_rows : int
        Number of rows.

    Raises
    ------
    ConfigError
        One is invalid, or llguidance refuses it; there is not one list per row.
    MissingExtra
        llguidance is not installed.

    Examples
    --------
    >>> row_constraints(None, [["yes", "no"], ["one"]], 2)[1].source
    '["one"]'
    """
    if regex is not None:
        _require_text("regex", regex)
        return _checked([Constraint("regex", regex)] * n_rows)
    given = _as_list(choices)
    if given is None:
        raise ConfigError(
            f"choices must be a list of texts, or one list per row; got {printable(repr(choices), _SHOWN)}."
        )
    if not any(_as_list(one) is not None or _is_missing(one) for one in given):
        return _checked([_one_of(given, "choices")] * n_rows)
    if len(given) != n_rows:
        raise ConfigError(
            f"choices has {len(given)} entries for {n_rows} rows. Pass one list per row, or one list of texts for all."
        )
    return _checked(
        [_no_choices() if _is_missing(one) else _one_of(one, f"choices of row {at}") for at, one in enumerate(given)]
    )


def constrained_prompts(
    texts: Sequence[str | None], constraints: Sequence[Constraint | RowError]
) -> list[Prompt | RowError | None]:
    """Return the prompt of each row with its constraint, or the error in its place; None without a prompt."""
    return [
        None if text is None else one if isinstance(one, RowError) else Prompt(text, constraint=one)
        for text, one in zip(texts, constraints, strict=True)
    ]


def checked_text(result: Result) -> Result:
    """Return a result as an error, with its text, where the answer is cut and so need not match its constraint."""
    return truncated(result) if result.status == "ok" and result.finish_reason != "stop" else result


def _only_one(given: Mapping[str, object]) -> str | None:
    forms = [name for name, value in given.items() if value is not None]
    if len(forms) > 1:
        raise ConfigError(f"{' and '.join(forms)} exclude each other. Pass only one of them.")
    return forms[0] if forms else None


def _checked(found: list[Constraint | RowError]) -> list[Constraint | RowError]:
    for one in dict.fromkeys(one for one in found if isinstance(one, Constraint)):
        check_constraint(one)
    return found


def _one_of(choices: object, what: str) -> Constraint:
    given = _as_list(choices)
    if given is None:
        raise ConfigError(f"{what} must be a list of texts; got {printable(repr(choices), _SHOWN)}.")
    for one in given:
        _require_text(what, one)
    if not given:
        raise ConfigError(f"{what} is empty. Pass at least one text.")
    return Constraint("choices", json.dumps(list(dict.fromkeys(given)), ensure_ascii=False))


def _no_choices() -> RowError:
    return RowError("generate", "The row has no choices. Fill the column, or pass one list of choices for all rows.")


def _as_list(given: object) -> list[object] | None:
    is_many = isinstance(given, Sequence | np.ndarray | pd.Series | pd.Index) and not isinstance(given, str | bytes)
    return list(cast("Sequence[object]", given)) if is_many else None


def _is_missing(choices: object) -> bool:
    given = _as_list(choices)
    return not given if given is not None else choices is None or bool(pd.isna(cast("Any", choices)))


def _require_text(name: str, text: object) -> None:
    if not isinstance(text, str) or not text:
        raise ConfigError(f"{name} must be text that is not empty; got {printable(repr(text), _SHOWN)}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name} contains an unpaired surrogate at index {error.start}. Remove it.") from error
