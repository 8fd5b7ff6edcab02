"""Read an answer from a response: events of a stream, or one JSON document. All of it is data, and none is trusted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qwenvl_kit.inference.repetition import repeated_phrase
from qwenvl_kit.openai_backend.faults import NotOpenAIError, Transient, reported_error

if TYPE_CHECKING:
    from qwenvl_kit.openai_backend.client import Response
    from qwenvl_kit.openai_backend.server import Server

_BYTES_OF_TOKEN = 1024  # an event of vLLM has about 250
_BYTES_OF_ALTERNATIVE = 512
_BYTES_OF_ANSWER = 1 << 18
_CUT = 8  # as for other broken connections


@dataclass
class Answer:
    """An answer, as far as it was read.

    Attributes
    ----------
    pieces : list of str
        Its text.
    finish_reason : str or None
        The server's word; None while it is not finished.
    refusal : str
        Text of a refusal.
    prompt_tokens, new_tokens : int or None
        As the server counts them.
    tokens : list of dict
        Log-probabilities in OpenAI's form, one entry a token.
    has_choice : bool
        Whether the server sent any choice.
    """

    pieces: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    refusal: str = ""
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    tokens: list[dict[str, Any]] = field(default_factory=list)
    has_choice: bool = False

    @property
    def text(self) -> str:
        """The whole text."""
        return whole_characters("".join(self.pieces))

    def phrase(self) -> int | None:
        """Return how many pieces the phrase has that the answer repeats to its end; None where there is none."""
        known: dict[str, int] = {}
        return repeated_phrase([known.setdefault(piece, len(known)) for piece in self.pieces])


def max_answer_bytes(max_new_tokens: int, logprobs: int | None) -> int:
    """Return the most bytes that are read of an answer.

    Examples
    --------
    >>> max_answer_bytes(256, None)
    524288
    """
    of_logprobs = 0 if logprobs is None else _BYTES_OF_ALTERNATIVE * (logprobs + 1)
    return _BYTES_OF_ANSWER + max_new_tokens * (_BYTES_OF_TOKEN + of_logprobs)


def read_answer(
    response: Response,
    server: Server,
    max_bytes: int,
    on_piece: Callable[[str], None] | None = None,
    *,
    stop_repetition: bool = False,
) -> Answer:
    """Read an answer to its end.

    Parameters
    ----------
    response : Response
        Of a chat completion; a server may ignore that a stream was asked for.
    server : Server
        For messages.
    max_bytes : int
        Most bytes of the body.
    on_piece : callable, optional
        Called with each piece of text.
    stop_repetition : bool
        Stop reading an answer that repeats one phrase.

    Raises
    ------
    Transient
        The stream ended too early, or the server reports that it is busy.
    RowError
        The answer is too long, of another form, or an error.
    """
    if response.content_type == "text/event-stream":
        return _read_stream(response.chunks(max_bytes), server, on_piece, stop_repetition=stop_repetition)
    body = response.read(max_bytes)
    content = read_json(body, response.content_type, server)
    answer = Answer()
    add(answer, content, server)
    if on_piece is not None:
        for piece in answer.pieces:
            on_piece(whole_characters(piece))
    return answer


def _read_stream(
    chunks: Iterable[bytes], server: Server, on_piece: Callable[[str], None] | None, *, stop_repetition: bool
) -> Answer:
    answer, is_done = Answer(), False
    for line in _lines(chunks):
        if not line.startswith(b"data:"):  # comments keep connections alive; names of events repeat what data says
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            is_done = True
            break
        n_before = len(answer.pieces)
        add(answer, read_json(data, "text/event-stream", server), server)
        if on_piece is not None:
            for piece in answer.pieces[n_before:]:
                on_piece(whole_characters(piece))
        if stop_repetition and len(answer.pieces) > n_before and answer.phrase() is not None:
            answer.finish_reason = "repetition"
            break
    if answer.finish_reason is None and not is_done:
        raise Transient(f"The stream of {server.base_url} ended before the answer did.", max_tries=_CUT)
    return answer


def _lines(chunks: Iterable[bytes]) -> Iterable[bytes]:
    """Give the lines of a body without their ends; what follows the last end is cut off."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk if rest else chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def read_json(body: bytes, content_type: str, server: Server) -> dict[str, Any]:
    """Return a JSON object.

    Raises
    ------
    NotOpenAIError
        It is something else, such as a web page.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        return content
    start = body[:200].decode("utf-8", "replace")
    is_page = content_type == "text/html" or start.lstrip()[:1] == "<"
    what = "a web page" if is_page else f"no JSON object, but {server.quote(repr(start), 100)}"
    raise NotOpenAIError(
        "generate", f"{server.base_url} answered with {what}. Check base_url, which ends with /v1 for most servers."
    )


def add(answer: Answer, event: dict[str, Any], server: Server) -> None:
    """Add what an event of a stream, or a whole completion, says.

    Raises
    ------
    Transient, RowError
        It reports an error, or has another form.
    """
    if event.get("error"):
        raise reported_error(event["error"], server)
    try:
        if usage := event.get("usage"):
            answer.prompt_tokens = _count(usage.get("prompt_tokens"))
            answer.new_tokens = _count(usage.get("completion_tokens"))
        for choice in event.get("choices") or ():
            if choice.get("index", 0) == 0:
                _add_choice(answer, choice)
    except (AttributeError, TypeError, KeyError) as error:
        raise NotOpenAIError(
            "generate", f"{server.base_url} answered in a form that is not OpenAI's ({type(error).__name__})."
        ) from error


def _add_choice(answer: Answer, choice: dict[str, Any]) -> None:
    answer.has_choice = True
    message = choice.get("delta") or choice.get("message") or {}
    if piece := message.get("content"):
        if not isinstance(piece, str):
            raise TypeError("the content of a choice is text")
        answer.pieces.append(piece)
    if refusal := message.get("refusal"):
        answer.refusal += str(refusal)
    if reason := choice.get("finish_reason"):
        answer.finish_reason = str(reason)
    if logprobs := choice.get("logprobs"):
        answer.tokens += logprobs.get("content") or ()


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def whole_characters(text: str) -> str:
    r"""Join surrogates that belong together, and replace those that stand alone, which no file could hold.

    Examples
    --------
    >>> whole_characters("\ud83d\ude00 \ud83d") == "\U0001f600 \ufffd"
    True
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
