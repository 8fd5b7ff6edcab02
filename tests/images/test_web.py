"""Addresses of strangers: what is followed, what is refused, and what is told. Nothing leaves this machine."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from qwenvl_kit.errors import RowError
from qwenvl_kit.images import web
from qwenvl_kit.images.fetch import FetchLimits

LIMITS = FetchLimits(timeout_s=5, max_image_bytes=100_000, allow_private_hosts=True)
STRICT = FetchLimits(timeout_s=5, max_image_bytes=100_000, allow_private_hosts=False)


@pytest.fixture(autouse=True)
def _fresh_pools() -> Iterator[None]:
    yield
    for private in (True, False):
        web._pool(private).clear()
    web._pool.cache_clear()


def get(url: str, limits: FetchLimits = LIMITS) -> bytes:
    return web.get(url, "the picture", limits)[0]


def told(url: str, limits: FetchLimits = LIMITS) -> str:
    with pytest.raises(RowError) as caught:
        get(url, limits)
    assert caught.value.stage == "fetch"
    return caught.value.message


@pytest.mark.parametrize("path", ["good", "chunked", "hops/1", "hops/5"])
def test_pictures_are_fetched_whole_and_redirects_followed(server: Any, path: str) -> None:
    assert get(server.url(path)).startswith(b"\x89PNG")


@pytest.mark.parametrize("path", ["hops/6", "loop"])
def test_more_than_five_redirects_are_refused(server: Any, path: str) -> None:
    assert "more than 5 times" in told(server.url(path))
    assert len(server.paths) == 6


@pytest.mark.parametrize("status", [404, 403, 500, 503])
def test_another_status_than_200_is_told(server: Any, status: int) -> None:
    assert f"status {status}" in told(server.url(f"status/{status}"))


def test_a_body_cut_short_is_an_error_and_never_a_picture(server: Any) -> None:
    assert "broke off" in told(server.url("short"))


def test_a_server_that_drips_meets_the_deadline(server: Any) -> None:
    started = time.monotonic()

    assert "timeout_s=0.5" in told(server.url("drip"), FetchLimits(0.5, 100_000, True))
    assert time.monotonic() - started < 2


def test_a_body_beyond_the_limit_is_not_read_to_its_end(server: Any) -> None:
    assert "max_image_bytes=100000" in told(server.url("large/5000000"))


def test_a_refused_connection_is_told_at_once(server: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert "refused" in told(f"http://127.0.0.1:{port}/a.png")


def test_private_hosts_are_refused_outright_where_asked(server: Any) -> None:
    assert "allow_private_hosts=True" in told(server.url("good"), STRICT)
    assert server.paths == []


@pytest.mark.parametrize(
    "target",
    ["fileCOLON///etc/passwd", "ftpCOLON//127.0.0.1/x", "dataCOLONimage/png;base64,AAAA"],
)
def test_redirects_to_other_schemes_are_refused(server: Any, target: str) -> None:
    assert "only http and https" in told(server.url(f"to/{target}"))


@pytest.mark.parametrize("address", ["169.254.169.254", "[fe80::1]", "100.100.100.200", "[::ffff:169.254.169.254]"])
def test_metadata_addresses_are_refused_also_when_private_hosts_are_allowed(server: Any, address: str) -> None:
    assert "metadata" in told(server.url(f"to/httpCOLON//{address}/latest"))
    assert "metadata" in told(f"http://{address}/latest")


def test_a_name_is_judged_by_the_address_that_is_connected_to(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_as(monkeypatch, {"innocent.example": "169.254.169.254"})

    assert "metadata" in told("http://innocent.example/a.png")


def test_a_public_host_cannot_send_us_to_a_private_one(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_public(monkeypatch, "public.example")

    assert "private network" in told(
        f"http://public.example:{server.port}/hops/1".replace(
            "hops/1", f"to/httpCOLON//127.0.0.1COLON{server.port}/good"
        )
    )
    assert get(f"http://public.example:{server.port}/hops/2").startswith(b"\x89PNG")


def test_a_private_host_may_send_us_on_within_private_ones(server: Any) -> None:
    assert get(server.url(f"to/httpCOLON//127.0.0.1COLON{server.port}/good")).startswith(b"\x89PNG")


def test_a_name_that_does_not_resolve_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_as(monkeypatch, {})

    assert "cannot be resolved" in told("http://nowhere.example/a.png")


@pytest.mark.parametrize("kind", ["etag", "date"])
def test_an_address_is_asked_whether_it_changed_without_fetching_it_again(server: Any, kind: str) -> None:
    url = server.url(f"marked/{kind}")
    _, mark = web.get(url, "the picture", LIMITS)
    assert mark is not None
    assert mark.startswith(kind)

    assert web.is_unchanged(url, "the picture", mark, LIMITS)
    assert server.bodies == 1
    assert not web.is_unchanged(url, "the picture", f"{kind}:another", LIMITS)
    assert not web.is_unchanged(server.url("good"), "the picture", mark, LIMITS), "no answer of 304 is a change"


def test_connections_are_kept_for_the_next_picture(server: Any) -> None:
    for _ in range(5):
        get(server.url("good"))

    assert len(server.connections) == 1


@pytest.mark.parametrize("address", ["http://", "http://exa mple/", "http://[::1", "http://a:notaport/"])
def test_an_address_that_is_none_is_a_row_error(address: str) -> None:
    assert told(address)


def resolve_as(monkeypatch: pytest.MonkeyPatch, names: dict[str, str]) -> None:
    real = socket.getaddrinfo

    def pretended(host: str, port: int, *rest: Any, **options: Any) -> Any:
        if host.endswith(".example"):
            if host not in names:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (names[host], port))]
        return real(host, port, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", pretended)


def pretend_public(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let `name` resolve to a public address whose connections are made to this machine instead."""
    import urllib3.util.connection as connections

    public = "93.184.216.34"
    resolve_as(monkeypatch, {name: public})
    real = connections.create_connection

    def local(address: tuple[str, int], *rest: Any, **options: Any) -> Any:
        return real(("127.0.0.1" if address[0] == public else address[0], address[1]), *rest, **options)

    monkeypatch.setattr(connections, "create_connection", local)
