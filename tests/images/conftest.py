"""A server on this machine that answers as odd as the web does."""

from __future__ import annotations

import contextlib
import email.utils
import gzip
import http.server
import io
import shutil
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from helpers.needs import lacking
from PIL import Image


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 60), "red").save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Server:
    """Where it listens, and what it was asked."""

    port: int = 0
    paths: list[str] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)
    bodies: int = 0
    logins: list[str | None] = field(default_factory=list)
    certificate: Path | None = None

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: Server

    def do_GET(self) -> None:
        self.server_state.paths.append(self.path)
        self.server_state.connections.add(self.client_address)
        name, _, argument = self.path.strip("/").partition("/")
        getattr(self, f"answer_{name}", self.answer_missing)(argument)

    def answer_good(self, _: str) -> None:
        self._send(200, png())

    def answer_flaky(self, faults: str) -> None:
        """Answer the first requests for this path with a fault, such as ``2/short/name``; then well."""
        n_faults, kind = faults.split("/")[:2]
        if self.server_state.paths.count(self.path) > int(n_faults):
            self.answer_good("")
        elif kind.isdecimal():
            self._send(int(kind), b"busy")
        else:
            getattr(self, f"answer_{kind}")(faults.split("/")[-1])

    def answer_login(self, target: str) -> None:
        """Note the login, and redirect where a target is given."""
        self.server_state.logins.append(self.headers.get("Authorization"))
        if target:
            self.answer_to(target)
        else:
            self.answer_good("")

    def answer_busy(self, seconds: str) -> None:
        """Say when to come again: in seconds, or as a date so many seconds ahead."""
        date = seconds.startswith("date")
        when = email.utils.formatdate(time.time() + int(seconds[4:]), usegmt=True) if date else seconds
        self.send_response(503)
        self.send_header("Retry-After", when)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer_reset(self, _: str) -> None:
        self.close_connection = True

    def answer_torn(self, _: str) -> None:
        """Break off between two chunks."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n\x89PNG\n\r\n")
        self.close_connection = True

    def answer_marked(self, kind: str) -> None:
        name, condition = {"etag": ("ETag", "If-None-Match"), "date": ("Last-Modified", "If-Modified-Since")}[kind]
        mark = {"etag": '"v1"', "date": "Mon, 23 Nov 2026 00:00:00 GMT"}[kind]
        if self.headers.get(condition) == mark:
            self.send_response(304)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header(name, mark)
        self.send_header("Content-Length", str(len(png())))
        self.end_headers()
        self.server_state.bodies += 1
        with contextlib.suppress(OSError):
            self.wfile.write(png())

    def answer_missing(self, _: str) -> None:
        self._send(404, b"not here")

    def answer_status(self, status: str) -> None:
        self._send(int(status.partition("?")[0]), b"")

    def answer_large(self, n_bytes: str) -> None:
        self._send(200, b"x" * int(n_bytes))

    def answer_short(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5000")
        self.end_headers()
        self.wfile.write(png()[:100])
        self.close_connection = True

    def answer_drip(self, where: str) -> None:
        """Send a byte now and then, in the head, the body, or a chunk's size, and after a stall."""
        heads = {
            "body": "Content-Length: 100\r\n\r\n",
            "size": "Transfer-Encoding: chunked\r\n\r\n",
            "head": "X-Slow: ",
        }
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + heads[where].encode())
        for _ in range(40):
            try:
                self.wfile.write(b"0")
            except OSError:  # the client has gone, as it should
                break
            time.sleep(0.1)
        self.close_connection = True

    def answer_stall(self, seconds: str) -> None:
        """Send the head late, and nothing after it."""
        time.sleep(float(seconds))
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        time.sleep(4 * float(seconds))
        self.close_connection = True

    def answer_gzip(self, n_bytes: str) -> None:
        """Compress what was not asked to be."""
        body = gzip.compress(png() if not n_bytes else bytes(int(n_bytes)))
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_chunked(self, _: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        data = png()
        for at in range(0, len(data), 50):
            part = data[at : at + 50]
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def answer_hops(self, n_hops: str) -> None:
        self._redirect("/good" if int(n_hops) == 1 else f"/hops/{int(n_hops) - 1}")

    def answer_page(self, kind: str) -> None:
        """Redirect as most servers do, with a page that nobody reads."""
        page = b"<html>moved</html>" * 10
        self.send_response(301)
        self.send_header("Location", "/good")
        if kind == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            page = f"{len(page):x}\r\n".encode() + page + b"\r\n0\r\n\r\n"
        else:
            self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if kind == "late":  # when the client may have asked for the next already
            time.sleep(0.1)
        with contextlib.suppress(OSError):
            self.wfile.write(page)

    def answer_loop(self, _: str) -> None:
        self._redirect("/loop")

    def answer_to(self, target: str) -> None:
        self._redirect(urllib.parse.unquote(target).replace("COLON", ":"))

    def log_message(self, *_: object) -> None:
        pass

    def _redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # a client that has read enough goes away
            self.wfile.write(body)


class _Listening(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        pass  # clients that had enough reset their connections


@pytest.fixture
def server() -> Iterator[Server]:
    with _serving() as state:
        yield state


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[Server]:
    """The same over TLS, under a certificate that nobody knows yet."""
    if shutil.which("openssl") is None:
        lacking("no openssl here, which makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    asked = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"]
    kind = ["-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", *kind, *asked, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with _serving(context) as state:
        state.certificate = certificate
        yield state


@contextlib.contextmanager
def _serving(context: ssl.SSLContext | None = None) -> Iterator[Server]:
    state = Server()
    handler = type("Bound", (Handler,), {"server_state": state})
    with _Listening(("127.0.0.1", 0), handler) as listening:
        if context is not None:
            listening.socket = context.wrap_socket(listening.socket, server_side=True)
        state.port = listening.server_port
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield state
        listening.shutdown()
        thread.join(5)


@dataclass
class Ranges:
    """A server of one image; what it was asked for, and how many bytes it sent."""

    url: str = ""
    asked: list[str | None] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)


@pytest.fixture
def ranges() -> Iterator[Ranges]:
    """Serve an image of 600 × 400: /honest sends the range that is asked for, /deaf the whole file."""
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data, state = buffer.getvalue(), Ranges()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            body = data
            if asked and self.path == "/honest":
                end = int(asked.rpartition("-")[2]) + 1
                body = data[:end]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes 0-{len(body) - 1}/{len(data)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            state.sent.append(len(body))
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with _Listening(("127.0.0.1", 0), Handler) as listening:
        state.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield state
        listening.shutdown()
        thread.join(5)
