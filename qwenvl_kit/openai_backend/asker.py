"""Ask a server for the answer to one row, with retries."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from qwenvl_kit.errors import RowError
from qwenvl_kit.inference.cancellation import Cancelled
from qwenvl_kit.openai_backend.faults import StatusError, Transient
from qwenvl_kit.openai_backend.parameters import parameters
from qwenvl_kit.openai_backend.request import request_body
from qwenvl_kit.openai_backend.results import result_of
from qwenvl_kit.openai_backend.stream import max_answer_bytes, read_answer

if TYPE_CHECKING:
    from qwenvl_kit.checkpoints.resolve import ResolvedConfig
    from qwenvl_kit.openai_backend.client import Client
    from qwenvl_kit.openai_backend.retry import Patience
    from qwenvl_kit.openai_backend.server import Server
    from qwenvl_kit.openai_backend.stream import Answer
    from qwenvl_kit.types import Request, Result

ENDPOINT = "chat/completions"
_REMEDIES = {
    "json": "Pass constrain=False, or use a server that supports response_format.",
    "regex": "Leave regex out, or use a server that supports it, such as vLLM or SGLang.",
    "choices": "Leave choices out, or use a server that supports them, such as vLLM or SGLang.",
}


class Asker:
    """Ask for rows of one run; safe for several threads.

    Parameters
    ----------
    server : Server
        The server.
    model : str
        As the server names it.
    resolved : ResolvedConfig
        How answers are made.
    patience : Patience
        Shared by all rows.
    cancel : threading.Event
        Ends waiting.
    refused : collection of str
        Parameters that the server refuses.

    Attributes
    ----------
    on_piece : callable or None
        Called as ``on_piece(row, text)`` with each new piece of text, from the thread that asks.
    """

    def __init__(
        self,
        server: Server,
        model: str,
        resolved: ResolvedConfig,
        patience: Patience,
        cancel: threading.Event,
        *,
        refused: Collection[str] = (),
    ) -> None:
        self._server, self._model, self._resolved, self._refused = server, model, resolved, refused
        self._patience, self._cancel = patience, cancel
        self.on_piece: Callable[[int, str], None] | None = None

    def ask(self, request: Request, client: Client, deadline: float) -> Result:
        """Return the result of a row.

        Raises
        ------
        RowError
            The row has no answer, of the stage ``generate``.
        Cancelled
            The run was cancelled while the row waited for another try.
        """
        if request.labels:
            raise RowError("generate", "A server returns no likelihoods of labels. Use backend='torch' or 'onnx'.")
        answer = self._answer(request, client, deadline)
        return result_of(request, answer, self._server, self._resolved.logprobs)

    def _answer(self, request: Request, client: Client, deadline: float) -> Answer:
        n_tries: Counter[int | None] = Counter()
        told = _Told(request.row, self.on_piece)
        at = 0.0
        while True:
            self._wait_until(max(at, self._patience.not_before), deadline)
            try:
                return self._try_once(request, client, deadline, told)
            except Transient as fault:
                n_tries[fault.max_tries] += 1
                at = self._patience.next_try(fault, n_tries[fault.max_tries], deadline)
                told.begin_again()

    def _try_once(self, request: Request, client: Client, deadline: float, told: _Told) -> Answer:
        resolved = self._resolved
        sampled = parameters(resolved, request.max_new_tokens, request.seed, self._refused)

        def body() -> list[bytes]:
            return request_body(self._model, sampled, request, resolved.image_encoding or "png")

        try:
            with client.request("POST", self._server.path(ENDPOINT), deadline, body) as response:
                self._patience.record_reached()
                return read_answer(
                    response,
                    self._server,
                    max_answer_bytes(request.max_new_tokens, resolved.logprobs),
                    told.add if told.is_heard else None,
                    stop_repetition=resolved.stop_repetition,
                )
        except StatusError as error:
            if request.constraint is not None and error.status in (400, 422):
                raise RowError("generate", f"{error.message} {_REMEDIES[request.constraint.kind]}") from error
            raise

    def _wait_until(self, at: float, deadline: float) -> None:
        left = min(at, deadline) - time.monotonic()
        if left > 0 and self._cancel.wait(left):
            raise Cancelled


class _Told:
    """The text of a row that was passed on, so that a second try does not repeat it."""

    def __init__(self, row: int, on_piece: Callable[[int, str], None] | None) -> None:
        self._row, self._on_piece = row, on_piece
        self._n_told = self._n_read = 0

    @property
    def is_heard(self) -> bool:
        return self._on_piece is not None

    def begin_again(self) -> None:
        self._n_read = 0

    def add(self, piece: str) -> None:
        assert self._on_piece is not None, "else no piece is passed on"
        new = piece[max(0, self._n_told - self._n_read) :]
        self._n_read += len(piece)
        if new:
            self._n_told = self._n_read
            self._on_piece(self._row, new)
