"""Compare an answer with the one that it should be, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwenvl_kit.types import Result


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near an answer is to the expected one.

    Attributes
    ----------
    agrees : bool
        Texts, prompt tokens and log-probabilities are equal within the tolerance.
    same_text : bool
        Texts are equal.
    logprob_difference : float or None
        Largest difference in nats over the tokens before the texts part; None where the engine gives none.
    """

    agrees: bool
    same_text: bool
    logprob_difference: float | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """Agreements of a round."""

    agreements: tuple[Agreement, ...]

    @property
    def n_differ(self) -> int:
        """Answers that do not agree."""
        return sum(not one.agrees for one in self.agreements)

    @property
    def logprob_difference(self) -> float | None:
        """The largest of all answers."""
        known = [one.logprob_difference for one in self.agreements if one.logprob_difference is not None]
        return max(known, default=None)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.agreements + other.agreements)


def tally(found: Sequence[Result], expected: Sequence[Result], tolerance: float) -> Tally:
    """Compare answers one by one; see `compare`."""
    return Tally(tuple(compare(one, other, tolerance) for one, other in zip(found, expected, strict=True)))


def compare(found: Result, expected: Result, tolerance: float) -> Agreement:
    """Compare an answer.

    A text may part from the expected one where that was nearly a tie: where the expected token is at most twice the
    tolerance likelier than the next one.

    Parameters
    ----------
    found, expected : Result
        The latter with log-probabilities and alternatives, if ties are to count as equal.
    tolerance : float
        Largest difference of log-probabilities, in nats.

    Examples
    --------
    >>> from qwenvl_kit.types import Result
    >>> compare(Result(0, "ok", text="Red."), Result(0, "ok", text="Red."), 1e-3).agrees
    True
    """
    if found.status != "ok" or expected.status != "ok":
        return Agreement(found.status == expected.status, same_text=False)
    same_text = found.text == expected.text
    n_common = len(expected.token_texts or ()) if same_text else common_length(found.text or "", expected)
    difference = _difference(found, expected, n_common)
    is_near = difference is None or difference <= tolerance
    counts = (found.prompt_tokens, expected.prompt_tokens)
    is_as_long = None in counts or counts[0] == counts[1]
    agrees = is_as_long and is_near and (same_text or _margin(found.text or "", expected, n_common) <= 2 * tolerance)
    return Agreement(agrees, same_text, difference)


def common_length(text: str, expected: Result) -> int:
    """Return how many tokens of the expected answer begin `text`; the token that ends an answer is none of them."""
    begin = ""
    for at, token in enumerate(expected.token_texts or ()):
        begin += token
        if not token or not text.startswith(begin):
            return at
    return len(expected.token_texts or ())


def _difference(found: Result, expected: Result, n_common: int) -> float | None:
    """Return the largest difference of log-probabilities over common tokens; infinite for one that is no number."""
    given, right = found.token_logprobs, expected.token_logprobs
    if given is None or right is None or (found.text == expected.text and len(given) != len(right)):
        return None
    pairs = list(zip(given, right, strict=False))[:n_common]
    differences = [abs(one - other) for one, other in pairs]
    return max((math.inf if math.isnan(one) else one for one in differences), default=0.0)


def _margin(text: str, expected: Result, at: int) -> float:
    """Return how far the expected token is from the one with which `text` goes on, in nats; infinite if unknown."""
    logprobs, alternatives = expected.alternative_logprobs, expected.alternative_texts
    if not logprobs or not alternatives or not expected.token_logprobs or at >= len(expected.token_logprobs):
        return math.inf
    begin = "".join((expected.token_texts or ())[:at])
    n = len(logprobs) // len(expected.token_logprobs)
    rest = text[len(begin) :]
    chosen = expected.token_logprobs[at]
    for token, logprob in zip(alternatives[at * n : (at + 1) * n], logprobs[at * n : (at + 1) * n], strict=True):
        fits = rest.startswith(token) if token else not rest
        if fits and token != (expected.token_texts or ())[at]:
            return abs(chosen - logprob)  # under a penalty the expected token need not be the likeliest
    return math.inf
