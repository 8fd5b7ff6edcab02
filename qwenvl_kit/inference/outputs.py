"""Results of sequences: finished, overflowed, out of memory or refused by a library."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qwenvl_kit.errors import RowError
from qwenvl_kit.inference.repetition import repeated_phrase
from qwenvl_kit.types import Result

if TYPE_CHECKING:
    from qwenvl_kit.inference.sequence import Sequence
    from qwenvl_kit.types import Request


def finished(sequence: Sequence, decode: Callable[[list[int]], str]) -> Result:
    """Return the result of a sequence that has a `finish_reason`; one that loops to its end is flagged.

    Parameters
    ----------
    sequence : Sequence
        The request and its output.
    decode : callable
        Token ids to text.
    """
    request, ids = sequence.request, sequence.output_ids
    if sequence.label_ids:
        return _scored(sequence)
    phrase = None if sequence.finish_reason == "stop" else repeated_phrase(ids)
    try:
        text = decode(sequence.answer_ids)
        flag = None if phrase is None else f"repeats {decode(ids[-phrase:])!r} to its end"
        logprobs = _logprobs(sequence, decode)
    except Exception as error:  # noqa: BLE001  # a tokenizer of one row's tokens; other rows are not touched
        return failed(request, error, "decoding the output tokens")
    return Result(
        request.row,
        "ok",
        text=text,
        finish_reason=sequence.finish_reason,
        prompt_tokens=len(sequence.prompt_ids),
        new_tokens=len(ids),
        seconds=sequence.seconds,
        flag=flag,
        maps=sequence.maps,
        **request.sizes,
        **logprobs,
    )


def _logprobs(sequence: Sequence, decode: Callable[[list[int]], str]) -> dict[str, Any]:
    """Return the fields of the log-probabilities of an answer; none where they were not asked for."""
    if not sequence.logprobs:
        return {}
    chosen, *_ = zip(*sequence.logprobs, strict=True)
    likeliest = [one for place in sequence.logprobs for one in place[1:]]
    return {
        "token_logprobs": tuple(logprob for _, logprob in chosen),
        "token_texts": tuple(decode([token]) for token, _ in chosen),
        "alternative_logprobs": tuple(logprob for _, logprob in likeliest),
        "alternative_texts": tuple(decode([token]) for token, _ in likeliest),
    }


def _scored(sequence: Sequence) -> Result:
    """Return the result of a sequence with labels; its text is the likeliest."""
    request, scores = sequence.request, sequence.label_logprobs
    return Result(
        request.row,
        "ok",
        text=request.labels[scores.index(max(scores))],
        finish_reason=sequence.finish_reason,
        prompt_tokens=len(sequence.prompt_ids),
        new_tokens=0,
        seconds=sequence.seconds,
        label_logprobs=scores,
        label_tokens=sequence.label_tokens,
        **request.sizes,
    )


def overflow_error(sequence: Sequence, dtype: str) -> Result:
    """Return the result of a sequence whose logits are NaN or infinite."""
    advice = "dtype='float32'" if dtype == "bfloat16" else "dtype='bfloat16', which has the range of float32"
    return _error(sequence, f"The logits overflowed in {dtype} (NaN or infinite). Try {advice}.")


def oom_error(sequence: Sequence) -> Result:
    """Return the result of a sequence that does not fit into memory even alone."""
    height, width = sequence.request.images[0].size
    return _error(
        sequence,
        f"Out of memory for this row alone ({len(sequence.prompt_ids)} tokens, first image {width}×{height}). Lower "
        "max_pixels or max_caption_length, or spread the model with device_map='auto'.",
    )


def failed(request: Request, error: Exception, doing: str) -> Result:
    """Return the result of a request that a library refused before or after the model ran.

    Parameters
    ----------
    request : Request
        The request.
    error : Exception
        What was raised; a `RowError` is taken as it is.
    doing : str
        The step that raised it, such as ``"encoding the prompt"``.
    """
    if not isinstance(error, RowError):
        error = RowError(
            "generate", f"Failed {doing} ({type(error).__name__}: {error}). Change this row and run again."
        )
    return Result.failed(request.row, error, sizes=request.sizes)


def _error(sequence: Sequence, message: str) -> Result:
    request = sequence.request
    return Result.failed(request.row, RowError("generate", message), sizes=request.sizes)
