"""A pool of http and https connections out, each to an address that the policy allows.

Addresses are checked where the connection is made, on the very address that is connected to, so that a name which
resolves differently a moment later gains nothing. It knows nothing of what is asked for over them.
"""

from __future__ import annotations

import functools
import http.client
import io
import ipaddress
import socket
import time
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

MAX_PER_HOST = 16
"""Connections to one host at a time; whoever wants another waits for one of them."""

_METADATA = (
    ipaddress.ip_network("169.254.0.0/16"),
    ipaddress.ip_network("fe80::/10"),
    ipaddress.ip_network("fd00:ec2::/32"),
    ipaddress.ip_network("100.100.100.200/32"),  # https://www.alibabacloud.com/help/en/ens/instance-metadata
    ipaddress.ip_network("100.96.0.96/32"),  # https://docs.byteplus.com/en/docs/ecs/Viewing-instance-metadata
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address in an IPv6 one


class HostRefused(Exception):
    """A name resolves to no address that may be connected to; not an OSError, which urllib3 would retry or wrap."""

    def __init__(self, host: str, *, private: bool) -> None:
        where = "a private network" if private else "a link-local or metadata address"
        fix = "; pass allow_private_hosts=True if that is meant" if private else ""
        super().__init__(f"the host {host} lies in {where}, which is refused{fix}")
        self.private = private


@functools.cache
def pool(private: bool) -> urllib3.PoolManager:
    """One pool for public hosts and one for all: a kept connection is only used under the policy it was made under."""
    checked = urllib3.PoolManager(num_pools=64, maxsize=MAX_PER_HOST, block=True)
    checked.pool_classes_by_scheme = {
        "http": _pool_class(HTTPConnectionPool, HTTPConnection, private=private),
        "https": _pool_class(HTTPSConnectionPool, HTTPSConnection, private=private),
    }
    return checked


def _pool_class(pool: Any, connection: Any, *, private: bool) -> Any:
    def connect(self: Any) -> socket.socket:
        return _connect(self, private=private)

    members = {"_new_conn": connect, "response_class": _PunctualResponse}
    checked = type(f"Checked{connection.__name__}", (connection,), members)
    return type(f"Checked{pool.__name__}", (pool,), {"ConnectionCls": checked})


class _PunctualResponse(http.client.HTTPResponse):
    """Keeps the socket's time-out as a whole, where the library would grant it anew for every byte of a header."""

    def __init__(self, sock: socket.socket, *rest: Any, **options: Any) -> None:
        super().__init__(sock, *rest, **options)
        self.fp: io.BufferedReader = io.BufferedReader(_Punctual(self.fp.detach(), sock))


class _Punctual(io.RawIOBase):
    """Reads from a socket until the time-out that it had at first has passed."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw, self._sock = raw, sock
        self._deadline = time.monotonic() + (sock.gettimeout() or 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer was not whole in time")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


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
    """The address that is reached in the end: IPv6 has forms that hold an IPv4 address."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip
