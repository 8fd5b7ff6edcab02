"""Answers that servers give and other clients understand: each is read, or refused with its true reason."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pandas as pd
import pytest
from images.conftest import Server, png

from qwenvl_kit import RowErrorWarning

Say = Callable[[bytes], bytes]
"""From a request's head to the bytes of its answer."""


def _reply(head: str, body: bytes = b"", charset: str = "ascii") -> bytes:
    return f"{head}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode(charset) + body


@contextlib.contextmanager
def _serving(say: Say) -> Iterator[tuple[str, list[bytes]]]:
    """Answer each connection once; gives the address, and the heads of the requests."""
    heads: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # closed: the test is over
                    return
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(5)
                    heads.append(connection.recv(65536))
                    connection.sendall(say(heads[-1]))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heads
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def _row(address: str) -> pd.Series:
    row: pd.Series = pd.Series([address]).vl.run(backend="echo", progress=False).iloc[0]
    return row


def test_a_redirect_in_raw_utf8_is_followed() -> None:
    def say(head: bytes) -> bytes:
        if head.startswith(b"GET /caf%C3%A9.png "):
            return _reply("HTTP/1.1 200 OK", png())
        return _reply("HTTP/1.1 302 Found\r\nLocation: /café.png", charset="utf-8")

    with _serving(say) as (address, _):
        assert _row(f"{address}/start")["status"] == "ok"


def test_a_redirect_that_needs_its_cookie_gets_it_and_other_hosts_do_not() -> None:
    with _serving(lambda head: _reply("HTTP/1.1 200 OK", png())) as (other, heads_of_other):
        elsewhere = other.replace("127.0.0.1", "localhost")

        def say(head: bytes) -> bytes:
            if b"ookie: seen=1" not in head:
                return _reply("HTTP/1.1 302 Found\r\nLocation: /a.png\r\nSet-Cookie: seen=1; Path=/")
            if head.startswith(b"GET /a.png "):
                return _reply(f"HTTP/1.1 302 Found\r\nLocation: {elsewhere}/b.png")
            return _reply("HTTP/1.1 404 Not Found")

        with _serving(say) as (address, heads):
            assert _row(f"{address}/a.png")["status"] == "ok"
            assert len(heads) == 2
    assert not [head for head in heads_of_other if b"ookie:" in head]


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 203 Non-Authoritative Information",
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK",
    ],
    ids=["203", "103-before-200"],
)
def test_a_success_of_any_form_is_read(head: str) -> None:
    with _serving(lambda _: _reply(head, png())) as (address, heads):
        row = _row(f"{address}/a.png")

    assert row["status"] == "ok", row["error"]
    assert len(heads) == 1


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ("\r\n".join(f"X-{number}: y" for number in range(120)), "more than 100 headers"),
        ("X-Long: " + "y" * 70_000, "more than 65536 characters"),
    ],
    ids=["120-headers", "long-line"],
)
def test_a_head_beyond_what_python_reads_is_told_as_such_and_not_asked_for_again(headers: str, told: str) -> None:
    with (
        _serving(lambda _: _reply(f"HTTP/1.1 200 OK\r\n{headers}", png())) as (address, heads),
        pytest.warns(RowErrorWarning, match=told),
    ):
        row = _row(f"{address}/a.png")

    assert row["stage"] == "fetch"
    assert len(heads) == 1


def test_https_that_redirects_to_http_is_refused(
    tls_server: Server, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_server.certificate))
    target = f"httpCOLON//127.0.0.1:{server.port}/good"

    with pytest.warns(RowErrorWarning):
        row = _row(tls_server.url(f"to/{target}").replace("http://", "https://"))

    assert row["stage"] == "fetch"
    assert "from https to http://" in row["error"]
    assert not server.paths
