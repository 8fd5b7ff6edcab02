"""Score the objects of an answer by the probabilities of the tokens that wrote them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from qwenvl_kit.tasks.box_parser import ParsedObject
from qwenvl_kit.tasks.token_spans import overlapping, token_spans

# Chosen with tests/benchmarks/box_scores.py on scenes of the training side. A whole weight ranks worse and is far too
# low: of several pixels that are as good for an edge, each has a part of the probability.
_WEIGHT_OF_COORDINATES = 0.05


class ObjectLogprobs(NamedTuple):
    """Log-probabilities of the tokens that wrote an object's coordinates and its label."""

    coordinates: list[float]
    label: list[float]


def object_scores(objects: Sequence[ParsedObject], text: str, tokens: object) -> list[float]:
    """Return the probability of each object's label, lowered a little where its coordinates are uncertain.

    The factor is the geometric mean of the probabilities of the coordinates' tokens, to the power of 0.05. It orders
    objects whose labels are equally sure; a mean, so that large images, whose coordinates have more digits, score no
    lower. Probabilities are the model's own, before constraints and temperature.

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
    found = object_logprobs(objects, text, tokens)
    return [math.nan] * len(objects) if found is None else [_score(*one) for one in found]


def object_logprobs(objects: Sequence[ParsedObject], text: str, tokens: object) -> list[ObjectLogprobs] | None:
    """Return the log-probabilities of each object's tokens; None where there are none. Arguments: `object_scores`."""
    given: list[dict[str, Any]] = tokens if isinstance(tokens, list) else []
    spans = token_spans([one["token"] for one in given], text) if given else None
    if spans is None:
        return None
    logprobs = [float(one["logprob"]) for one in given]
    return [
        ObjectLogprobs(*([logprobs[at] for at in overlapping(spans, part)] for part in one.spans())) for one in objects
    ]


def _score(coordinates: Sequence[float], label: Sequence[float]) -> float:
    if not coordinates:
        return math.nan
    mean = math.fsum(coordinates) / len(coordinates)
    return min(1.0, math.exp(math.fsum(label) + _WEIGHT_OF_COORDINATES * mean))
