"""What a model said for a request goes in, its `Result` comes out; how it was generated is not known here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qwenvl_kit.errors import RowError
from qwenvl_kit.inference.repetition import repeated_phrase
from qwenvl_kit.types import Result

if TYPE_CHECKING:
    from qwenvl_kit.inference.processor import Encoded
    from qwenvl_kit.types import FinishReason, Request


def finished(
    encoded: Encoded,
    output_ids: list[int],
    finish_reason: FinishReason,
    decode: Callable[[list[int]], str],
    *,
    seconds: float,
) -> Result:
    """The result of a row that ended as it should; one that loops to its end is flagged.

    Parameters
    ----------
    encoded : Encoded
        What was asked.
    output_ids : sequence of int
        New tokens, without the one that ended the answer.
    finish_reason : {"stop", "length", "repetition"}
        Why there are no more.
    decode : callable
        Token ids to text.
    seconds : float
        The row's share of the time.
    """
    phrase = None if finish_reason == "stop" else repeated_phrase(output_ids)
    height, width = encoded.request.images[0].size
    try:
        text = decode(output_ids)
        flag = None if phrase is None else f"repeats {decode(output_ids[-phrase:])!r} to its end"
    except Exception as error:  # noqa: BLE001  # a tokenizer of one row's tokens; other rows are not touched
        return failed(encoded.request, error, "decoding the answer's tokens")
    return Result(
        encoded.request.row,
        "ok",
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=len(encoded.ids),
        new_tokens=len(output_ids),
        height=height,
        width=width,
        seconds=seconds,
        flag=flag,
    )


def overflow_error(encoded: Encoded, dtype: str) -> Result:
    """The result of a row whose logits are NaN or infinite."""
    advice = "dtype='float32'" if dtype == "bfloat16" else "dtype='bfloat16', which has the range of float32,"
    message = f"the model's numbers overflowed in {dtype} (NaN or infinite logits); {advice} may help"
    return _failed(encoded, message)


def oom_error(encoded: Encoded) -> Result:
    """The result of a row that does not fit into memory even alone."""
    height, width = encoded.request.images[0].size
    return _failed(
        encoded,
        f"memory ran out for this row alone ({len(encoded.ids)} tokens, first picture {width}×{height}); lower "
        "max_pixels or max_caption_length, or spread the model with device_map='auto'",
    )


def failed(request: Request, error: Exception, doing: str) -> Result:
    """Return the result of a row that a library refused before or after the model ran.

    Parameters
    ----------
    request : Request
        What was asked.
    error : Exception
        What was raised; a `RowError` says itself what is wrong.
    doing : str
        Which step raised it, such as ``"encoding the prompt"``.
    """
    if not isinstance(error, RowError):
        error = RowError("generate", f"{doing} failed ({type(error).__name__}: {error}); change this row and ask again")
    return Result.failed(request.row, error, size=request.images[0].size)


def _failed(encoded: Encoded, message: str) -> Result:
    request = encoded.request
    return Result.failed(request.row, RowError("generate", message), size=request.images[0].size)
