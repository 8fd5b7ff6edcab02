"""Addresses of strangers: what is followed, what is refused, and what is told. Nothing leaves this machine."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3.util.connection as sockets

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.classify import classify
from qwenvl_kit.images.fetch import connections, fetch, http
from qwenvl_kit.images.fetch.limits import FetchLimits

LIMITS = FetchLimits(timeout_s=5, max_image_bytes=100_000, allow_private_hosts=True)
PUBLIC = "93.184.216.34"
STRICT = FetchLimits(timeout_s=5, max_image_bytes=100_000, allow_private_hosts=False)


@pytest.fixture(autouse=True)
def _fresh_pools() -> Iterator[None]:
    yield
    for private in (True, False):
        connections.pool(private).clear()
    connections.pool.cache_clear()


def get(url: str, limits: FetchLimits = LIMITS) -> bytes:
    (source,) = classify(url, "image_url")
    return fetch(source, limits).data


def error_message(url: str, limits: FetchLimits = LIMITS) -> str:
    with pytest.raises(RowError) as caught:
        get(url, limits)
    assert caught.value.stage == "fetch"
    return caught.value.message


@pytest.mark.parametrize(
    "path", ["good", "chunked", "gzip", "hops/1", "hops/5", "page/plain", "page/chunked", "page/late"]
)
def test_images_are_fetched_whole_and_redirects_followed(server: Any, path: str) -> None:
    assert get(server.url(path)).startswith(b"\x89PNG")


@pytest.mark.parametrize("path", ["hops/6", "loop"])
def test_more_than_five_redirects_are_refused(server: Any, path: str) -> None:
    assert "more than 5 times" in error_message(server.url(path))
    assert len(server.paths) == 6


@pytest.mark.parametrize("status", [404, 403, 500, 503])
def test_another_status_than_200_is_told(server: Any, status: int) -> None:
    assert f"status {status}" in error_message(server.url(f"status/{status}"))


def test_a_body_cut_short_is_an_error_and_never_an_image(server: Any) -> None:
    assert "broke off" in error_message(server.url("short"))


@pytest.mark.parametrize("path", ["drip/head", "drip/body", "drip/size", "stall/0.45"])
def test_a_server_that_drips_or_stalls_meets_the_deadline(server: Any, path: str) -> None:
    started = time.monotonic()

    assert "timeout_s=0.5" in error_message(server.url(path), FetchLimits(0.5, 100_000, True))
    assert time.monotonic() - started < 0.9, "the time is one for head and body, not one for each"


def test_a_body_beyond_the_limit_is_not_read_to_its_end(server: Any) -> None:
    assert "max_image_bytes=100000" in error_message(server.url("large/5000000"))
    assert "max_image_bytes=100000" in error_message(server.url("gzip/5000000")), "what it unpacks to counts"
    assert len(get(server.url("large/100000"))) == 100_000


def test_a_refused_connection_is_told_at_once(server: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert "refused" in error_message(f"http://127.0.0.1:{port}/a.png")


def test_private_hosts_are_refused_outright_where_asked(server: Any) -> None:
    assert "allow_private_hosts=True" in error_message(server.url("good"), STRICT)
    assert server.paths == []


@pytest.mark.parametrize(
    "target",
    ["fileCOLON///etc/passwd", "ftpCOLON//127.0.0.1/x", "dataCOLONimage/png;base64,AAAA"],
)
def test_redirects_to_other_schemes_are_refused(server: Any, target: str) -> None:
    assert "http and https only" in error_message(server.url(f"to/{target}"))


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.170.2",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "100.96.0.96",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
    ],
)
def test_metadata_addresses_are_refused_also_when_private_hosts_are_allowed(server: Any, address: str) -> None:
    assert "metadata" in error_message(server.url(f"to/httpCOLON//{address}/latest"))
    assert "metadata" in error_message(f"http://{address}/latest")


def test_a_name_is_judged_by_the_address_that_is_connected_to(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_as(monkeypatch, {"innocent.example": "169.254.169.254"})

    assert "metadata" in error_message("http://innocent.example/a.png")


def test_a_public_host_cannot_send_us_to_a_private_one(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_public(monkeypatch, "public.example")

    assert "private network" in error_message(
        f"http://public.example:{server.port}/hops/1".replace(
            "hops/1", f"to/httpCOLON//127.0.0.1COLON{server.port}/good"
        )
    )
    assert get(f"http://public.example:{server.port}/hops/2").startswith(b"\x89PNG")


def test_a_private_host_may_send_us_on_within_private_ones(server: Any) -> None:
    assert get(server.url(f"to/httpCOLON//127.0.0.1COLON{server.port}/good")).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "0.0.0.0", "[::1]", "[fd12::1]", "[::ffff:10.0.0.1]", "[64:ff9b::a00:1]"],
)
def test_every_form_of_a_private_address_is_refused_where_asked(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_connections(monkeypatch)

    assert "private network" in error_message(f"http://{address}/a.png", STRICT)


def test_a_name_with_a_public_and_a_private_address_is_reached_at_the_public_one(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected = pretend_public(monkeypatch, "both.example", "10.0.0.1", PUBLIC)

    assert get(f"http://both.example:{server.port}/good", STRICT).startswith(b"\x89PNG")
    assert connected == [PUBLIC]


def test_a_name_that_does_not_resolve_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_as(monkeypatch, {})

    assert "cannot be resolved" in error_message("http://nowhere.example/a.png")


@pytest.mark.parametrize("kind", ["etag", "date"])
def test_an_address_is_asked_whether_it_changed_without_fetching_it_again(server: Any, kind: str) -> None:
    url = server.url(f"marked/{kind}")
    version = http.HttpGet(url, LIMITS).try_once().version
    assert version is not None
    assert version.startswith(kind)

    assert http.is_unchanged(url, version, LIMITS)
    assert server.bodies == 1
    assert not http.is_unchanged(url, f"{kind}:another", LIMITS)
    assert not http.is_unchanged(server.url("good"), version, LIMITS), "no answer of 304 is a change"


def test_connections_are_kept_for_the_next_image(server: Any) -> None:
    for _ in range(5):
        get(server.url("good"))

    assert len(server.connections) == 1


@pytest.mark.parametrize("address", ["http://", "http://exa mple/", "http://[::1", "http://a:notaport/"])
def test_an_address_that_is_none_is_a_row_error(address: str) -> None:
    assert error_message(address)


@pytest.mark.parametrize("path", ["page/late", "page/chunked", "status/404", "large/5000000", "short", "hops/2"])
def test_what_an_answer_leaves_unread_does_not_spoil_the_next(server: Any, path: str) -> None:
    for _ in range(2):
        with contextlib.suppress(RowError):
            get(server.url(path))
        assert get(server.url("good")).startswith(b"\x89PNG")


@pytest.mark.parametrize("path", ["status/500", "short", "drip/body", "large/5000000", "hops/6", "to/fileCOLON///etc"])
def test_messages_hold_the_label_and_nothing_of_the_address(server: Any, path: str) -> None:
    address = server.url(path).replace("http://", "http://me:hunter2@") + "?X-Amz-Signature=deadbeef"

    message = error_message(address, FetchLimits(0.3, 100_000, True))

    assert message.startswith(f"http://***@127.0.0.1:{server.port}/{path}?…: ")
    assert not [secret for secret in ("me:", "hunter2", "deadbeef") if secret in message]


def test_a_redirect_to_a_signed_address_tells_no_signature(server: Any) -> None:
    message = error_message(server.url("to/ftpCOLON//me:hunter2@127.0.0.1/x?sig=deadbeef".replace("?", "%3F")))

    assert "ftp://***@127.0.0.1/x?…" in message


def test_https_is_fetched_where_the_certificate_is_trusted_and_refused_elsewhere(
    tls_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = tls_server.url("good").replace("http://", "https://")

    assert "certificate" in error_message(address)
    connections.pool.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_server.certificate))
    assert get(address).startswith(b"\x89PNG")
    assert "timeout_s=0.3" in error_message(address.replace("good", "drip/head"), FetchLimits(0.3, 100_000, True))


def resolve_as(monkeypatch: pytest.MonkeyPatch, names: dict[str, str]) -> None:
    real = socket.getaddrinfo

    def pretended(host: str, port: int, *rest: Any, **options: Any) -> Any:
        if host.endswith(".example"):
            if host not in names:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (name, port)) for name in names[host].split()]
        return real(host, port, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", pretended)


def pretend_public(monkeypatch: pytest.MonkeyPatch, name: str, *addresses: str) -> list[str]:
    """Let `name` resolve to public addresses whose connections are made to this machine instead; keep where to."""
    resolve_as(monkeypatch, {name: " ".join(addresses or (PUBLIC,))})
    real, connected = sockets.create_connection, list[str]()

    def local(address: tuple[str, int], *rest: Any, **options: Any) -> Any:
        connected.append(address[0])
        return real(("127.0.0.1", address[1]), *rest, **options)

    monkeypatch.setattr(sockets, "create_connection", local)
    return connected


def forbid_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: tuple[str, int], *_: Any, **__: Any) -> Any:
        pytest.fail(f"a connection to {address} was made")

    monkeypatch.setattr(sockets, "create_connection", refuse)
