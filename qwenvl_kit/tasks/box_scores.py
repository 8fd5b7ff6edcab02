"""Score the objects of an answer by the probabilities of the tokens that wrote them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from qwenvl_kit.tasks.box_parser import ParsedObject
from qwenvl_kit.tasks.token_spans import overlapping, token_spans


def object_scores(objects: Sequence[ParsedObject], text: str, tokens: object) -> list[float]:
    """Return the probability of each object's label times the mean probability of its coordinates' tokens.

    The mean is geometric, so that large images, whose coordinates have more digits, score no lower. Probabilities are
    the model's own, before constraints and temperature.

    Parameters
    ----------
    objects : sequence of ParsedObject
        Of the answer.
    text : str
        The answer.
    tokens : list of dict or None
        Its tokens, each with its log-probability, as in the column ``logprobs`` of results.

    Returns
    -------
    list of float
        From 0 to 1; NaN where there are no log-probabilities, or tokens that do not make up the text.

    Examples
    --------
    >>> from qwenvl_kit.tasks.box_parser import parse_objects
    >>> words = ['{"point_2d": [', "1", "0", ", ", "7", '], "label": "', "cat", '"}']
    >>> tokens = [{"token": word, "logprob": math.log(0.5) if word == "cat" else 0.0} for word in words]
    >>> answer = "".join(words)
    >>> round(object_scores(parse_objects(answer, "point").objects, answer, tokens)[0], 3)
    0.5
    """
    given: list[dict[str, Any]] = tokens if isinstance(tokens, list) else []
    spans = token_spans([one["token"] for one in given], text) if given else None
    if spans is None:
        return [math.nan] * len(objects)
    logprobs = [float(one["logprob"]) for one in given]
    return [_score(*([logprobs[at] for at in overlapping(spans, part)] for part in one.spans())) for one in objects]


def _score(numbers: Sequence[float], label: Sequence[float]) -> float:
    if not numbers:
        return math.nan
    return min(1.0, math.exp(math.fsum(label) + math.fsum(numbers) / len(numbers)))
