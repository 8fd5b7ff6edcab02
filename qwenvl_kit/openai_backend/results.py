"""Make the result of a row of a server's answer."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from qwenvl_kit.errors import RowError
from qwenvl_kit.openai_backend.stream import whole_characters
from qwenvl_kit.types import FinishReason, Result

if TYPE_CHECKING:
    from qwenvl_kit.openai_backend.server import Server
    from qwenvl_kit.openai_backend.stream import Answer
    from qwenvl_kit.types import Constraint, Request

_REASONS: dict[str | None, FinishReason] = {
    None: "stop",
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "length": "length",
    "repetition": "repetition",
}
_FORMS = {"json": "schema", "regex": "regex", "choices": "list of choices"}
_SHOWN = 60


def result_of(request: Request, answer: Answer, server: Server, n_alternatives: int | None) -> Result:
    """Return a row's result.

    Parameters
    ----------
    request : Request
        Of the row.
    answer : Answer
        Read to its end.
    server : Server
        For messages.
    n_alternatives : int or None
        Likeliest tokens that were asked for in each place; None for no log-probabilities.

    Raises
    ------
    RowError
        There is no answer, or it does not match its constraint.
    """
    reason = _finish_reason(answer, server)
    text = answer.text
    if request.constraint is not None and reason == "stop":
        _check_match(request.constraint, text, server)
    phrase = None if reason == "stop" else answer.phrase()
    return Result(
        request.row,
        "ok",
        text=text,
        finish_reason=reason,
        prompt_tokens=answer.prompt_tokens,
        new_tokens=answer.new_tokens,
        flag=None if phrase is None else f"repeats {''.join(answer.pieces[-phrase:])!r} to its end",
        **request.sizes,
        **({} if n_alternatives is None else _logprobs(answer.tokens, text, n_alternatives)),
    )


def _finish_reason(answer: Answer, server: Server) -> FinishReason:
    if answer.refusal:
        raise RowError("generate", f"The model refused to answer: {server.quote(answer.refusal)}")
    if not answer.has_choice:
        raise RowError("generate", "The server's answer has no choice, so there is no text. Run this row again.")
    if answer.finish_reason == "content_filter":
        raise RowError("generate", "The server's content filter ended the answer.")
    if answer.finish_reason not in _REASONS:
        said = server.quote(repr(answer.finish_reason), _SHOWN)
        raise RowError("generate", f"The server ended the answer with finish_reason={said}, so it may not be whole.")
    return _REASONS[answer.finish_reason]


def _check_match(constraint: Constraint, text: str, server: Server) -> None:
    """Raise for an answer of a server that ignores a constraint, which the protocol allows."""
    if not matches(constraint, text):
        raise RowError(
            "generate",
            f"The answer {server.quote(repr(text), _SHOWN)} does not match the {_FORMS[constraint.kind]}: the server "
            "ignores it. Use a server that constrains answers, such as vLLM or SGLang, or constrain=False.",
        )


def matches(constraint: Constraint, text: str) -> bool:
    """Return whether a text is what a constraint allows; of a schema, whether it is JSON.

    Examples
    --------
    >>> from qwenvl_kit.types import Constraint
    >>> matches(Constraint("choices", '["yes", "no"]'), "maybe")
    False
    """
    if constraint.kind == "choices":
        return text in json.loads(constraint.source)
    if constraint.kind == "json":
        try:
            json.loads(text)
        except (ValueError, RecursionError):
            return False
        return True
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_regex(constraint.source), log_level=0)
    return bool(matcher.consume_tokens(list(text.encode())) and matcher.is_accepting())


def _logprobs(tokens: list[dict[str, Any]], text: str, n_alternatives: int) -> dict[str, Any]:
    """Return the fields of log-probabilities; none where the server sent none, or of another form."""
    try:
        texts = [whole_characters(str(one["token"])) for one in tokens]
        logprobs = [_number(one["logprob"]) for one in tokens]
        likeliest = [
            (whole_characters(str(one["token"])), _number(one["logprob"]))
            for place in tokens
            for one in _padded(place.get("top_logprobs") or [], n_alternatives)
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    if not tokens:
        return {}
    if "".join(texts[:-1]) == text:  # the last one ended the answer, and is no part of it
        texts[-1] = ""
    return {
        "token_logprobs": tuple(logprobs),
        "token_texts": tuple(texts),
        "alternative_logprobs": tuple(logprob for _, logprob in likeliest),
        "alternative_texts": tuple(one for one, _ in likeliest),
    }


def _padded(likeliest: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """Return as many alternatives as were asked for: some servers add the chosen token, some send fewer."""
    return [*likeliest, *([{"token": "", "logprob": -math.inf}] * n)][:n]


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a log-probability is a number")
    return float(value)
