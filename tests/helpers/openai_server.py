"""A server of the OpenAI-compatible protocol, without a model: it answers with the prompt and what it decoded.

It streams as vLLM does, and fails as a script says. It checks what real servers check: the key, the model, the form of
messages, the parameters. What it cannot prove: that an engine's own resizing leaves the images as they are.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import io
import json
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MODEL = "served/qwen"
KNOWN = {
    *("model", "messages", "max_tokens", "temperature", "top_p", "top_k", "seed", "repetition_penalty", "logprobs"),
    *("top_logprobs", "stream", "stream_options", "response_format", "structured_outputs", "min_p"),
    *("max_completion_tokens",),
}


@dataclass
class State:
    """What the server does, and what it was asked.

    Attributes
    ----------
    models : list of dict
        Its list of models.
    key : str or None
        The key that it wants.
    faults : list of str
        How to answer the next rows' requests: a status such as ``503``, ``429/0.2`` with Retry-After, ``cut``,
        ``drop``, ``html``, ``empty``, ``no-choice``, ``refusal``, ``filter``, ``huge``, ``huge-stream``, ``broken``,
        ``error``, ``elsewhere``, ``silent``, ``plain``, ``no-logprobs``, ``echo-key``, ``surrogate``, ``loop``.
    refuses : dict of str
        Parameters that are refused, and the form of the refusal: ``openai``, ``vllm``, ``fastapi`` or ``transformers``.
    ignores_constraints : bool
        Constraints are accepted, and not followed.
    piece_s : float
        Seconds before each piece.
    """

    port: int = 0
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": MODEL, "object": "model", "root": "/m"}])
    key: str | None = None
    faults: list[str] = field(default_factory=list)
    refuses: dict[str, str] = field(default_factory=dict)
    ignores_constraints: bool = False
    piece_s: float = 0.0
    answer: str | None = None
    scheme: str = "http"
    elsewhere: str = "http://127.0.0.2:9/v1"
    prefix: str = "/v1"
    lists: str = "models"
    certificate: Path | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    most_at_once: int = 0
    n_at_once: int = 0
    is_gone: bool = False
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        host = "localhost" if self.scheme == "https" else "127.0.0.1"
        return f"{self.scheme}://{host}:{self.port}{self.prefix}"

    @property
    def prompts(self) -> list[str]:
        """Prompts of rows, in the order of their arrival."""
        return [content_of(body)[-1]["text"] for body in self.bodies]


def content_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Parts of the user's message."""
    return body["messages"][-1]["content"]


def pixels_of(body: dict[str, Any]) -> list[np.ndarray]:
    """Images of a request, decoded."""
    urls = [part["image_url"]["url"] for part in content_of(body) if part["type"] == "image_url"]
    files = [base64.b64decode(url.partition(",")[2]) for url in urls if url.startswith("data:")]
    return [np.asarray(Image.open(io.BytesIO(file))) for file in files]


def expected(prompt: str, *images: np.ndarray) -> str:
    """What the server answers."""
    digests = [hashlib.blake2b(one.tobytes()).hexdigest()[:8] for one in images]
    seen = (f"{one.shape[1]}×{one.shape[0]} {digest}" for one, digest in zip(images, digests, strict=True))
    return f"{prompt} [{', '.join(seen)}]"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for each flush
    state: State

    def do_GET(self) -> None:
        self._note()
        if not self._is_admitted():
            return
        if self.path != f"{self.state.prefix}/models" or self.state.lists == "nothing":
            self._json(404, {"detail": "Not Found"})
        elif self.state.lists == "html":
            self._send(200, b"<!doctype html><title>Welcome</title>", "text/html")
        elif self.state.lists == "elsewhere":
            self._send(307, b"", "text/plain", {"Location": f"{self.state.elsewhere}/models"})
        elif self.state.lists == "other":
            self._json(200, ["a", "b"])
        else:
            self._json(200, {"object": "list", "data": self.state.models})

    def do_POST(self) -> None:
        self._note()
        if self.state.is_gone:
            self.close_connection = True
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_admitted() or self._is_refused(body):
            return
        is_probe = content_of(body)[-1]["text"] == "?"
        (self.state.probes if is_probe else self.state.bodies).append(body)
        with self.state.lock:
            fault = self.state.faults.pop(0) if self.state.faults and not is_probe else ""
        with self._counted():
            self._answer(body, fault)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with self.state.lock:
            self.state.n_at_once += 1
            self.state.most_at_once = max(self.state.most_at_once, self.state.n_at_once)
        try:
            yield
        finally:
            with self.state.lock:
                self.state.n_at_once -= 1

    def _note(self) -> None:
        self.state.headers.append(dict(self.headers))
        self.state.connections.add(self.client_address)

    def _is_admitted(self) -> bool:
        if self.state.key is None or self.headers.get("Authorization") == f"Bearer {self.state.key}":
            return True
        self._json(401, {"error": {"message": f"Incorrect key: {self.headers.get('Authorization')}", "code": "bad"}})
        return False

    def _is_refused(self, body: dict[str, Any]) -> bool:
        names = {model["id"] for model in self.state.models}
        if body["model"] not in names:
            self._json(404, {"object": "error", "message": f"The model `{body['model']}` does not exist.", "code": 404})
            return True
        name = next((one for one in self.state.refuses if one in body), None)
        if name is not None:
            self._refuse(name, self.state.refuses[name])
        return name is not None

    def _refuse(self, name: str, form: str) -> None:
        words = f"Unrecognized request argument supplied: {name}"
        if form == "openai":
            self._json(400, {"error": {"message": words, "param": None, "type": "invalid_request_error", "code": None}})
        elif form == "vllm":
            self._json(400, {"object": "error", "message": f"{name} is too large.", "param": name, "code": 400})
        elif form == "fastapi":
            self._json(422, {"detail": [{"loc": ["body", name], "msg": "Extra inputs are not permitted"}]})
        else:
            self._json(422, {"detail": f"Unexpected fields in the request: {{'{name}'}}"})

    def _answer(self, body: dict[str, Any], fault: str) -> None:
        status, _, wait_s = fault.partition("/")
        if status.isdigit():
            headers = {"Retry-After": wait_s} if wait_s else {}
            self._json(int(status), {"error": {"message": f"status {status}", "code": int(status)}}, headers)
        elif fault == "html":
            self._send(200, b"<html>a proxy's page</html>", "text/html")
        elif fault == "elsewhere":
            self._send(308, b"", "text/plain", {"Location": f"{self.state.elsewhere}/chat/completions"})
        elif fault == "echo-key":
            self._json(400, {"error": {"message": f"bad header {self.headers['Authorization']}"}})
        elif fault == "broken":
            self._send(200, b'{"choices": [', "application/json")
        elif fault == "huge":
            self._huge()
        elif fault == "drop":
            self.close_connection = True
        elif fault == "silent":
            self.state.released.wait(60)
        elif fault in ("plain", "no-choice", "refusal-plain") or not body.get("stream"):
            self._plain(body, fault)
        else:
            self._stream(body, fault)

    def _text(self, body: dict[str, Any]) -> str:
        if self.state.answer is not None:
            return self.state.answer
        if not self.state.ignores_constraints:
            if "response_format" in body:
                return '{"count": 3}'
            if "structured_outputs" in body:
                return str(body["structured_outputs"].get("choice", ["12"])[-1])
        return expected(content_of(body)[-1]["text"], *pixels_of(body))

    def _plain(self, body: dict[str, Any], fault: str) -> None:
        message: dict[str, Any] = {"role": "assistant", "content": self._text(body)}
        if fault == "refusal-plain":
            message = {"role": "assistant", "content": None, "refusal": "I will not."}
        choices = [] if fault == "no-choice" else [{"index": 0, "message": message, "finish_reason": "stop"}]
        self._json(200, {"choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": 5}})

    def _stream(self, body: dict[str, Any], fault: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):
            for event in self._events(body, fault):
                if event is None:
                    self.close_connection = True
                    return
                self._chunk(f"data: {event}\n\n".encode())
            self._chunk(b"")

    def _events(self, body: dict[str, Any], fault: str) -> Iterator[str | None]:
        if fault == "empty":
            yield json.dumps({"choices": []})
            yield "[DONE]"
            return
        if fault == "error":
            yield json.dumps({"error": {"message": "the engine is gone", "code": 400}})
            return
        words = ["again ", *(["again "] * 99)] if fault == "loop" else _pieces(self._text(body))
        limit = body.get("max_tokens", body.get("max_completion_tokens"))
        yield _event({"role": "assistant", "content": ""})
        for place, word in enumerate(words[:limit]):
            time.sleep(self.state.piece_s)
            if fault == "cut" and place == 2:
                yield None
            if fault == "huge-stream":
                word = "x" * 2**20
            if fault == "surrogate":
                word = f"{word}\ud83d"
            logprobs = _logprobs(word, body) if body.get("logprobs") and fault != "no-logprobs" else None
            yield _event({"content": word}, logprobs=logprobs)
        if fault == "refusal":
            yield _event({"refusal": "I will not."})
        reason = "content_filter" if fault == "filter" else "length" if len(words) > limit else "stop"
        end = _logprobs("<|im_end|>", body) if reason == "stop" and body.get("logprobs") else None
        yield _event({"content": ""}, reason, end if fault != "no-logprobs" else None)
        usage = {"prompt_tokens": 7, "completion_tokens": min(len(words), limit)}
        if body.get("stream_options", {}).get("include_usage"):
            yield json.dumps({"choices": [], "usage": usage})
        yield "[DONE]"

    def _huge(self) -> None:
        """Two hundred megabytes, as far as they are read."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(200 * 2**20))
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(200):
                self.wfile.write(b"x" * 2**20)
        self.close_connection = True

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def _json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), "application/json", headers or {})

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _pieces(text: str) -> list[str]:
    words = text.split(" ")
    return [word if place == 0 else f" {word}" for place, word in enumerate(words)]


def _event(delta: dict[str, Any], reason: str | None = None, logprobs: dict[str, Any] | None = None) -> str:
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
    return json.dumps({"id": "1", "object": "chat.completion.chunk", "model": MODEL, "choices": [choice]})


def _logprobs(token: str, body: dict[str, Any]) -> dict[str, Any]:
    likeliest = [{"token": f"{token}{n}", "logprob": -1.0 - n, "bytes": None} for n in range(body["top_logprobs"])]
    return {"content": [{"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": likeliest}]}


class Listening(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def handle_error(self, *_: object) -> None:
        pass  # a client that had enough went away


def listening(state: State) -> Listening:
    """Listen on a free port of this machine, or on that of `state`."""
    handler = type("Bound", (Handler,), {"state": state})
    server = Listening(("127.0.0.1", state.port), handler)
    if state.certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(state.certificate, state.certificate.with_suffix(".key"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        state.scheme = "https"
    state.port = server.server_port
    return server


@contextlib.contextmanager
def serve(state: State | None = None) -> Iterator[State]:
    """Serve in threads of this process."""
    state = state or State()
    with listening(state) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield state
        finally:
            state.released.set()
            server.shutdown()
            thread.join(5)


def serve_alone(port: int, piece_s: float) -> None:
    """Serve in a process of its own, for tests that kill it and measurements that leave it out."""
    with listening(State(port=port, piece_s=piece_s)) as alone:
        alone.serve_forever(0.05)
