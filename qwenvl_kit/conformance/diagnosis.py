"""Name the layer that makes answers of the base round differ, by the fault that explains them best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenvl_kit.conformance.agreement import Tally, tally
from qwenvl_kit.conformance.variants import NO_PENALTY, VARIANTS
from qwenvl_kit.tasks.box_parser import parse_objects

if TYPE_CHECKING:
    from qwenvl_kit.conformance.cases import Round
    from qwenvl_kit.conformance.engines import Reference
    from qwenvl_kit.types import Result

_MIN_EXPLAINED = 0.7  # share of answers that a fault must explain, and more than no fault does
_NOT_FINITE = ("finite", "overflow", "nan")
_LOOPS = 4  # times that one character makes up an answer


@dataclass(frozen=True, slots=True)
class Cause:
    """Why answers differ.

    Attributes
    ----------
    layer : str
        Where.
    words : str
        What.
    """

    layer: str
    words: str


def diagnose(asked: Round, found: Sequence[Result], reference: Reference, tolerance: float) -> Cause:
    """Return why the answers of a round differ from the reference's.

    Parameters
    ----------
    asked : Round
        Of images in the model's own size, asked one by one, so that few layers take part.
    found : sequence of Result
        The engine's answers.
    reference : Reference
        Answers as they should be, and with faults.
    tolerance : float
        As of `compare`.
    """
    expected = reference.ask(asked)
    differing = [
        (one, other)
        for one, other, agreement in zip(found, expected, tally(found, expected, tolerance).agreements, strict=True)
        if not agreement.agrees
    ]
    return (
        _not_finite(differing)
        or _error(differing)
        or _runs_on(differing)
        or _variant(asked, found, reference, tolerance)
        or _counts(differing, asked)
        or _boxes(differing)
        or _logprobs(differing)
        or Cause("forward pass", "no known fault explains the answers")
    )


def _not_finite(differing: Sequence[tuple[Result, Result]]) -> Cause | None:
    """Recognise overflow: an error that says so, log-probabilities that are no numbers, or one character repeated."""
    hit = [one for one, _ in differing if _is_overflow(one)]
    if not hit:
        return None
    said = hit[0].error or repr((hit[0].text or "")[:20])
    return Cause("precision", f"{len(hit)} answers are of numbers that are not finite, as with float16: {said}")


def _is_overflow(one: Result) -> bool:
    if one.status == "error":
        return any(word in (one.error or "").lower() for word in _NOT_FINITE)
    text = one.text or ""
    is_loop = len(text) >= _LOOPS and len(set(text)) == 1 and not text.isalnum()
    return is_loop or any(math.isnan(logprob) for logprob in one.token_logprobs or ())


def _error(differing: Sequence[tuple[Result, Result]]) -> Cause | None:
    failed = [one for one, _ in differing if one.status != "ok"]
    return Cause("requests", f"{len(failed)} fail: {failed[0].error}") if failed else None


def _runs_on(differing: Sequence[tuple[Result, Result]]) -> Cause | None:
    """Recognise answers that go on after the token that should end them."""
    ended = [(one, other) for one, other in differing if other.finish_reason == "stop"]
    longer = [one for one, other in ended if one.text != other.text and (one.text or "").startswith(other.text or "")]
    if not longer or 2 * len(longer) < len(ended):
        return None
    return Cause("stop tokens", f"{len(longer)} answers go on after their end: {longer[0].text!r:.100}")


def _variant(asked: Round, found: Sequence[Result], reference: Reference, tolerance: float) -> Cause | None:
    expected = reference.ask(asked)
    known = tally(found, expected, tolerance)
    variants = (*VARIANTS, NO_PENALTY) if asked.penalty not in (None, 1.0) else VARIANTS
    scores: list[tuple[int, float, Cause]] = []
    for variant in variants:
        explained = tally(found, reference.ask(asked, variant), max(tolerance, 0.01))
        scores.append((_n_agree(explained), _distance(explained), Cause(variant.layer, variant.words)))
    most, _, cause = max(scores, key=lambda score: (score[0], -score[1]))
    if most < _MIN_EXPLAINED * len(found) or most <= _n_agree(known):
        return None
    return Cause(cause.layer, f"{cause.words}: that explains {most} of {len(found)} answers")


def _n_agree(one: Tally) -> int:
    return len(one.agreements) - one.n_differ


def _distance(one: Tally) -> float:
    return one.logprob_difference or 0.0


def _counts(differing: Sequence[tuple[Result, Result]], asked: Round) -> Cause | None:
    """Recognise another number of prompt tokens: of the template where it is one number, else of images."""
    n_images = {len(case.files) for case in asked.cases}
    shifts = {
        one.prompt_tokens - other.prompt_tokens
        for one, other in differing
        if one.prompt_tokens is not None and other.prompt_tokens is not None
    } - {0}
    if not shifts:
        return None
    shown = ", ".join(f"{shift:+d}" for shift in sorted(shifts))
    is_constant = len(shifts) == 1 and not {abs(shift) for shift in shifts} & n_images
    layer = "chat template" if is_constant else "visual tokens"
    return Cause(layer, f"prompts have another number of tokens than they should: {shown}")


def _boxes(differing: Sequence[tuple[Result, Result]]) -> Cause | None:
    """Recognise boxes that are scaled or moved, where all other answers are right."""
    if not differing:
        return None
    pairs = [(_numbers(one), _numbers(other)) for one, other in differing]
    if not all(one and other and len(one) == len(other) for one, other in pairs):
        return None
    ratios = [a / b for one, other in pairs for a, b in zip(one, other, strict=True) if b]
    typical = sorted(ratios)[len(ratios) // 2] if ratios else math.nan
    return Cause("box coordinates", f"only boxes differ; their numbers are {typical:.3g} times as large")


def _numbers(one: Result) -> list[float]:
    return [number for box in parse_objects(one.text or "", "box").objects for number in box.coordinates]


def _logprobs(differing: Sequence[tuple[Result, Result]]) -> Cause | None:
    if not all(one.text == other.text for one, other in differing):
        return None
    return Cause("log-probabilities", "texts are right, log-probabilities are not (perhaps of warped scores)")
