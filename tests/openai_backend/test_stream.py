"""Answers are read whole however a stream is cut, and nothing that a server sends does more than fail its row."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenvl_kit.errors import RowError
from qwenvl_kit.openai_backend.faults import NotOpenAIError, Transient
from qwenvl_kit.openai_backend.server import Server
from qwenvl_kit.openai_backend.stream import Answer, add, max_answer_bytes, read_answer, read_json, whole_characters

SERVER = Server("http://h/v1")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


class Body:
    """A response whose body comes in these pieces."""

    def __init__(self, chunks: list[bytes], content_type: str = "text/event-stream") -> None:
        self._chunks, self.content_type = chunks, content_type

    def chunks(self, max_bytes: int) -> Iterator[bytes]:
        yield from self._chunks

    def read(self, max_bytes: int) -> bytes:
        return b"".join(self._chunks)


def event(piece: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": piece}, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode()


def read(chunks: list[bytes], **more: Any) -> Answer:
    return read_answer(Body(chunks), SERVER, 10**9, **more)  # type: ignore[arg-type]


@given(
    pieces=st.lists(st.text(max_size=8), max_size=12),
    cuts=st.lists(st.integers(0, 4000), max_size=12),
    end=st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r\n\r\n", b"\n: ping\n\n"]),
    done=st.booleans(),
)
def test_an_answer_is_the_same_however_its_stream_is_cut(
    pieces: list[str], cuts: list[int], end: bytes, done: bool
) -> None:
    lines = [event(piece) for piece in pieces] + [event("", "stop")] + ([b"data: [DONE]"] if done else [])
    body = b"".join(line + end for line in lines)
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    chunks = [body[start:stop] for start, stop in itertools.pairwise(places)]
    heard: list[str] = []

    answer = read(chunks, on_piece=heard.append)

    assert answer.text == "".join(pieces)
    assert "".join(heard) == answer.text
    assert answer.finish_reason == "stop"


@given(n=st.integers(0, 5))
def test_a_stream_without_its_end_is_no_answer(n: int) -> None:
    with pytest.raises(Transient, match="ended before the answer did"):
        read([event("a") + b"\n\n" for _ in range(n)])


@given(content=JSON, whole=st.booleans())
def test_any_json_is_an_answer_or_the_rows_error(content: Any, whole: bool) -> None:
    with contextlib.suppress(RowError, Transient):
        add(Answer(), content if isinstance(content, dict) and whole else {"choices": content}, SERVER)


@given(body=st.binary(max_size=40))
def test_any_bytes_are_an_object_or_the_rows_error(body: bytes) -> None:
    with contextlib.suppress(NotOpenAIError):
        assert isinstance(read_json(body, "application/json", SERVER), dict)


def test_deep_json_is_the_rows_error() -> None:
    with pytest.raises(NotOpenAIError):
        read_json(b"[" * 100_000, "application/json", SERVER)


@given(text=st.text(st.characters(), max_size=10) | st.text(st.characters(categories=["Cs", "Lu"]), max_size=10))
def test_any_text_can_be_written_afterwards(text: str) -> None:
    whole = whole_characters(text)

    whole.encode()
    assert whole == text or any("\ud800" <= one <= "\udfff" for one in text)


def test_other_choices_are_no_part_of_the_answer() -> None:
    answer = Answer()
    add(answer, {"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]}, SERVER)

    assert answer.text == "a"


@given(n=st.integers(1, 10_000), logprobs=st.none() | st.integers(0, 100))
def test_the_limit_of_an_answer_leaves_room_for_every_token(n: int, logprobs: int | None) -> None:
    token = {"token": "\\u6211" * 8, "logprob": -12.345678901, "bytes": [255] * 24}
    entry = {**token, "top_logprobs": [token] * (logprobs or 0)}
    said = {"choices": [{"index": 0, "delta": {"content": "我" * 8}, "logprobs": {"content": [entry]}}]}
    n_bytes = len(json.dumps(said, ensure_ascii=False).encode()) if logprobs is not None else 300

    assert max_answer_bytes(n, logprobs) >= n * n_bytes
