"""A http or https address in, the bytes behind it out, from hosts that the policy allows.

Addresses are checked where the connection is made, on the very address that is connected to, so that a name which
resolves differently a moment later gains nothing.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.sources import mask

if TYPE_CHECKING:
    from qwenvl_kit.images.fetch import FetchLimits

MAX_REDIRECTS = 5
_CHUNK = 1 << 16
_HEADERS = {"User-Agent": "qwenvl_kit", "Accept": "image/*,*/*;q=0.5"}
_METADATA = (
    ipaddress.ip_network("169.254.0.0/16"),
    ipaddress.ip_network("fe80::/10"),
    ipaddress.ip_network("fd00:ec2::/32"),
    ipaddress.ip_network("100.100.100.200/32"),
)


def get(address: str, label: str, limits: FetchLimits) -> tuple[bytes, str | None]:
    """Fetch an address, following at most 5 redirects; a public host may not send us to a private one.

    Parameters
    ----------
    address : str
        http or https.
    label : str
        Its name for messages, free of secrets.
    limits : FetchLimits
        Time over all redirects, bytes, and whether private networks are allowed.

    Returns
    -------
    body : bytes
        What is behind the address.
    mark : str or None
        Its ETag or date, by which `is_unchanged` asks later.

    Raises
    ------
    RowError
        No answer of status 200 within the limits, or a host that is refused, of the stage ``fetch``.
    """
    hop = _follow(address, label, limits, {})
    return hop.body, hop.mark


def is_unchanged(address: str, label: str, mark: str, limits: FetchLimits) -> bool:
    """Ask an address whether what it gave under `mark` is still what it gives, without fetching it again.

    Raises
    ------
    RowError
        As `get`.
    """
    kind, _, value = mark.partition(":")
    condition = {"etag": "If-None-Match", "date": "If-Modified-Since"}.get(kind)
    return condition is not None and _follow(address, label, limits, {condition: value}).is_unchanged


def _follow(address: str, label: str, limits: FetchLimits, condition: dict[str, str]) -> _Hop:
    deadline = time.monotonic() + limits.timeout_s
    private_allowed = limits.allow_private_hosts
    for _ in range(MAX_REDIRECTS + 1):
        hop = _hop(_Ask(address, label, limits, deadline, condition), private_allowed=private_allowed)
        if hop.location is None:
            return hop
        address, private_allowed = _target(address, hop.location, label), hop.private
        if urlsplit(address).scheme not in ("http", "https"):
            raise RowError("fetch", f"{label} redirects to {mask(address)}; only http and https are followed")
    raise RowError("fetch", f"{label} redirects more than {MAX_REDIRECTS} times")


class HostRefused(Exception):
    """A name resolves to no address that may be connected to; not an OSError, which urllib3 would retry or wrap."""

    def __init__(self, host: str, *, private: bool) -> None:
        where = "a private network" if private else "a link-local or metadata address"
        fix = "; pass allow_private_hosts=True if that is meant" if private else ""
        super().__init__(f"the host {host} lies in {where}, which is refused{fix}")
        self.private = private


def _target(address: str, location: str, label: str) -> str:
    try:
        return urljoin(address, location)
    except ValueError as error:
        raise RowError("fetch", f"{label} redirects to what is no valid address") from error


@dataclass(frozen=True, slots=True)
class _Ask:
    """One request: where, under what name and limits, until when, and under what condition."""

    address: str
    label: str
    limits: FetchLimits
    deadline: float
    condition: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Hop:
    """One answer: the body, or where it points; `private` tells which kind of host gave it."""

    private: bool
    body: bytes = b""
    mark: str | None = None
    location: str | None = None
    is_unchanged: bool = False


def _hop(ask: _Ask, *, private_allowed: bool) -> _Hop:
    label = ask.label
    try:
        try:
            return _send(ask, private=False)
        except HostRefused as refused:
            if not (refused.private and private_allowed):
                raise
            return _send(ask, private=True)
    except HostRefused as refused:
        raise RowError("fetch", f"{label}: {refused}") from refused
    except urllib3.exceptions.NameResolutionError as error:
        raise RowError("fetch", f"{label}: the host name cannot be resolved") from error
    except urllib3.exceptions.NewConnectionError as error:  # a kind of time-out to urllib3, so it must come first
        raise RowError("fetch", f"{label}: the connection was refused") from error
    except urllib3.exceptions.TimeoutError as error:
        raise _too_slow(label, ask.limits) from error
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise RowError("fetch", f"{label} cannot be read: {_reason(error)}") from error


def _send(ask: _Ask, *, private: bool) -> _Hop:
    left = ask.deadline - time.monotonic()
    if left <= 0:
        raise _too_slow(ask.label, ask.limits)
    response = _pool(private).request(
        "GET",
        ask.address,
        headers={**_HEADERS, **ask.condition},
        preload_content=False,
        redirect=False,
        retries=False,
        timeout=urllib3.Timeout(connect=left, read=left),
    )
    try:
        return _read(response, ask, private=private)
    except BaseException:
        response.close()  # a half-read connection must not go back to the pool
        raise
    finally:
        response.release_conn()


def _read(response: Any, ask: _Ask, *, private: bool) -> _Hop:
    if location := response.get_redirect_location():
        return _Hop(private, location=location)
    if response.status == 304 and ask.condition:
        return _Hop(private, is_unchanged=True)
    if response.status != 200:
        raise RowError("fetch", f"{ask.label} answered with status {response.status} {response.reason or ''}".rstrip())
    if ask.condition:  # it has changed, and will be fetched in its turn
        response.close()
        return _Hop(private)
    return _Hop(private, body=_body(response, ask.label, ask.limits, ask.deadline), mark=_mark(response.headers))


def _mark(headers: Any) -> str | None:
    """Name what an answer held: by its ETag, else by its date."""
    for kind, name in (("etag", "ETag"), ("date", "Last-Modified")):
        if value := headers.get(name):
            return f"{kind}:{value}"
    return None


def _body(response: Any, label: str, limits: FetchLimits, deadline: float) -> bytes:
    """Read what comes, as it comes, so that a server that drips one byte a second meets the deadline."""
    body = bytearray()
    while chunk := response.read1(_CHUNK):
        body += chunk
        if len(body) > limits.max_image_bytes:
            raise RowError(
                "fetch",
                f"{label} has more than max_image_bytes={limits.max_image_bytes} bytes; raise it if you trust it",
            )
        if time.monotonic() > deadline:
            raise _too_slow(label, limits)
    return bytes(body)


def _too_slow(label: str, limits: FetchLimits) -> RowError:
    return RowError(
        "fetch", f"{label} was not fetched within timeout_s={limits.timeout_s:g}; raise it if the host is slow"
    )


def _reason(error: Exception) -> str:
    """Say what happened without the library's message, which repeats the whole address."""
    known = {
        "IncompleteRead": "the connection broke off",
        "ProtocolError": "the connection broke off",
        "SSLError": "the certificate or TLS set-up is not accepted",
        "LocationParseError": "it is no valid address",
        "LocationValueError": "it is no valid address",
    }
    return known.get(type(error).__name__, type(error).__name__)


@functools.cache
def _pool(private: bool) -> urllib3.PoolManager:
    """One pool for public hosts and one for all: a kept connection is only used under the policy it was made under."""
    pool = urllib3.PoolManager(num_pools=64, maxsize=16)
    pool.pool_classes_by_scheme = {
        "http": _pool_class(HTTPConnectionPool, HTTPConnection, private=private),
        "https": _pool_class(HTTPSConnectionPool, HTTPSConnection, private=private),
    }
    return pool


def _pool_class(pool: Any, connection: Any, *, private: bool) -> Any:
    def connect(self: Any) -> socket.socket:
        return _connect(self, private=private)

    checked = type(f"Checked{connection.__name__}", (connection,), {"_new_conn": connect})
    return type(f"Checked{pool.__name__}", (pool,), {"ConnectionCls": checked})


def _connect(connection: Any, *, private: bool) -> socket.socket:
    """Take the place of ``HTTPConnection._new_conn``: resolve, check each address, connect to one that passed."""
    try:
        found = socket.getaddrinfo(connection._dns_host, connection.port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        cause = error if isinstance(error, socket.gaierror) else socket.gaierror(str(error))
        raise urllib3.exceptions.NameResolutionError(connection.host, connection, cause) from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    allowed = [address for address in addresses if _allowed(address, private=private)]
    if not allowed:
        raise HostRefused(connection.host, private=not any(map(_is_metadata, addresses)))
    return _connect_first(connection, allowed)


def _connect_first(connection: Any, addresses: list[str]) -> socket.socket:
    for last, address in enumerate(addresses, start=1 - len(addresses)):
        try:
            return urllib3.util.connection.create_connection(
                (address, connection.port),
                connection.timeout,
                source_address=connection.source_address,
                socket_options=connection.socket_options,
            )
        except TimeoutError as error:
            raise urllib3.exceptions.ConnectTimeoutError(connection, "connect timeout") from error
        except OSError as error:
            if last == 0:
                raise urllib3.exceptions.NewConnectionError(connection, str(error)) from error
    raise AssertionError("there is at least one address")


def _allowed(address: str, *, private: bool) -> bool:
    ip = _ip(address)
    return not _is_metadata(address) and (private or ip.is_global)


def _is_metadata(address: str) -> bool:
    ip = _ip(address)
    return any(ip in network for network in _METADATA if network.version == ip.version)


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(address.partition("%")[0])
    return getattr(ip, "ipv4_mapped", None) or ip
