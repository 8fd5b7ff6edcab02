"""One HTTP connection to a server, kept between requests. Redirects are not followed."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from urllib3.connection import HTTPConnection, HTTPSConnection

from qwenvl_kit._cpu import available_cpus
from qwenvl_kit.errors import QwenVLError, RowError
from qwenvl_kit.images.heap import trim_heap
from qwenvl_kit.openai_backend.faults import TRANSPORT_ERRORS, status_error, transport_error

if TYPE_CHECKING:
    from qwenvl_kit.openai_backend.server import Server

_CONNECT_S = 10.0
_CHUNK = 1 << 16
_LARGE = 1 << 20
_MAX_ERROR_BYTES = 1 << 16
# Requests that are written and sent at a time. The others wait for answers, and hold no encoded image.
_N_WRITERS = max(4, min(16, available_cpus()))
_DRAIN_S = 1.0  # for the end of a body whose content is complete


class Clients:
    """Make the connections of one run, which share what is large.

    Parameters
    ----------
    server : Server
        Where they lead.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._context = ssl.create_default_context() if server.is_https else None
        self._writers = threading.BoundedSemaphore(_N_WRITERS)

    def open(self) -> Client:
        """Return a client; it connects at its first request."""
        host, port = self._server.address
        connection = (
            HTTPConnection(host, port)
            if self._context is None
            else HTTPSConnection(host, port, ssl_context=self._context)
        )
        return Client(self._server, connection, self._writers)


class Client:
    """A connection to a server, for one thread; `abort` is for any.

    Parameters
    ----------
    server : Server
        Where it leads.
    connection : HTTPConnection
        Not yet open.
    writers : semaphore
        Held while a body is made and sent.
    """

    def __init__(self, server: Server, connection: HTTPConnection, writers: threading.BoundedSemaphore) -> None:
        self.server = server
        self._connection, self._writers = connection, writers
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self.is_aborted = False

    @contextlib.contextmanager
    def request(
        self, method: str, path: str, deadline: float, body: Callable[[], Sequence[bytes]] | None = None
    ) -> Iterator[Response]:
        """Send a request, and give its response within the block.

        Parameters
        ----------
        method, path : str
            ``POST`` and ``/v1/chat/completions``, for example.
        deadline : float
            Of ``time.monotonic``.
        body : callable, optional
            Return the body, which is JSON, in pieces. They are dropped once they are sent.

        Raises
        ------
        Transient
            The connection broke off, or the server is busy.
        RowError
            There is no success, or no time left.
        """
        try:
            raw = self._send(method, path, deadline, body)
            response = Response(raw, self, deadline)
            if raw.status != 200:
                raise status_error(raw, response.read(_MAX_ERROR_BYTES, cut=True), self.server)
            yield response
            self._finish(response)
        except QwenVLError:  # some are ValueErrors too
            self.close()
            raise
        except TRANSPORT_ERRORS as error:
            self.close()
            if time.monotonic() >= deadline or self.is_aborted:
                raise late(self.server) from error
            raise transport_error(error, self.server) from error
        except BaseException:
            self.close()  # what is left of the body would stand before the next response
            raise

    def abort(self) -> None:
        """End the request under way, from another thread; later ones fail too."""
        self.is_aborted = True
        with self._lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # TLS' own would let plain bytes through

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        with self._lock:
            self._socket = None
        self._connection.close()

    def _send(self, method: str, path: str, deadline: float, body: Callable[[], Sequence[bytes]] | None) -> Any:
        left = deadline - time.monotonic()
        if left <= 0 or self.is_aborted:
            raise late(self.server)
        if not self._connection.is_connected:
            self._connect(left)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a refusal may come before all is sent
            if body is None:
                self._write(method, path, deadline, None)
            else:
                with self._writers:
                    n_bytes = self._write(method, path, deadline, body())
                    if n_bytes >= _LARGE:
                        trim_heap()  # else 16 heaps keep what an image's file and its base64 took
        return self._connection.getresponse()

    def _write(self, method: str, path: str, deadline: float, pieces: Sequence[bytes] | None) -> int:
        headers, n_bytes = self.server.headers(), sum(map(len, pieces or ()))
        if pieces is not None:
            headers |= {"Content-Type": "application/json", "Content-Length": str(n_bytes)}
        self._connection.timeout = max(0.001, deadline - time.monotonic())
        self._connection.request(method, path, body=pieces, headers=headers, preload_content=False)
        return n_bytes

    def _connect(self, left: float) -> None:
        self._connection.close()
        self._connection.timeout = min(_CONNECT_S, left)
        self._connection.connect()
        with self._lock:
            self._socket = self._connection.sock
        if self.is_aborted:
            raise late(self.server)

    def _finish(self, response: Response) -> None:
        """Read the end of a body, so that the connection can be used again; else close it."""
        if response.is_at_end:
            return
        if self._connection.sock is not None:  # else the server closes it
            self._connection.sock.settimeout(_DRAIN_S)
            if not response.has_more():
                return
        self.close()


class Response:
    """A response that is being read.

    Parameters
    ----------
    raw : urllib3.HTTPResponse
        Its body is not read yet.
    client : Client
        That of the request.
    deadline : float
        Of ``time.monotonic``.
    """

    def __init__(self, raw: Any, client: Client, deadline: float) -> None:
        self._raw, self._client, self._deadline = raw, client, deadline
        self.is_at_end = False

    @property
    def content_type(self) -> str:
        """Media type, in lower case, without parameters."""
        return str(self._raw.headers.get("Content-Type", "")).partition(";")[0].strip().lower()

    def chunks(self, max_bytes: int) -> Iterator[bytes]:
        """Give the body piece by piece, as it arrives.

        Raises
        ------
        RowError
            It has more than `max_bytes`, or the deadline has passed.
        """
        n_bytes = 0
        while chunk := self._raw.read1(_CHUNK, decode_content=False):
            n_bytes += len(chunk)
            if n_bytes > max_bytes:
                raise RowError(
                    "generate",
                    f"The server's answer exceeds {max_bytes} bytes, the limit for this max_caption_length. It was "
                    "not read further.",
                )
            if time.monotonic() > self._deadline:
                raise late(self._client.server)
            yield chunk
        self.is_at_end = True

    def read(self, max_bytes: int, *, cut: bool = False) -> bytes:
        """Return the body; with `cut`, its first `max_bytes` where it has more. Raises as `chunks`."""
        body = io.BytesIO()
        try:
            for chunk in self.chunks(max_bytes):
                body.write(chunk)
        except RowError:
            if not cut:
                raise
        return body.getvalue()

    def has_more(self) -> bool:
        """Return whether bytes follow what was read."""
        return bool(self._raw.read1(_CHUNK, decode_content=False))


def late(server: Server) -> Exception:
    """Return the error of a request without an answer in time."""
    return RowError(
        "generate",
        f"{server.base_url} did not answer within request_timeout_s={server.timeout_s:g}. Raise it, or lower "
        "rows_in_flight.",
    )
