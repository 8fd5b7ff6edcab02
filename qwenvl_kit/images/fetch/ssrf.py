"""Resolve host names and connect to allowed addresses only: no server-side request forgery.

Each address is checked where the connection is made, so that a name which resolves differently a moment later gains
nothing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import urllib3

from qwenvl_kit.images.fetch.addresses import is_metadata, is_public
from qwenvl_kit.images.fetch.thread_group import ThreadGroup

# glibc's resolver waits for 10 to 30 s where a server is silent, and nothing can end it.
_resolvers = ThreadGroup("qwenvl_kit-resolve", 64, 8)
_found = threading.local()
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)


class BlockedAddressError(Exception):
    """A host has no address that may be connected to; not an OSError, which urllib3 would retry or wrap."""

    def __init__(self, host: str, *, private: bool) -> None:
        kind = "in a private network" if private else "link-local or of a metadata service"
        fix = " Pass allow_private_hosts=True to allow it." if private else ""
        super().__init__(f"The address of host {host} is {kind}, which is blocked.{fix}")
        self.private = private


class OutOfFilesError(Exception):
    """The process may open no more files; not an OSError, which urllib3 would take for a refused connection."""


@contextlib.contextmanager
def one_lookup() -> Iterator[None]:
    """Resolve each name once within the block, in this thread."""
    _found.addresses = {}
    try:
        yield
    finally:
        del _found.addresses


def connect(connection: Any, deadline: float, *, private: bool) -> socket.socket:
    """Resolve the host of a urllib3 connection, check its addresses, and connect to one that is allowed.

    Raises
    ------
    BlockedAddressError
        None is allowed: metadata services never are, private networks where `private` is False.
    OutOfFilesError
        The process has too many open files.
    """
    addresses = _resolve(connection)
    allowed = [address for address in addresses if not is_metadata(address) and (private or is_public(address))]
    if not allowed:
        raise BlockedAddressError(connection.host, private=not any(map(is_metadata, addresses)))
    return _connect_first(connection, allowed, deadline)


def _resolve(connection: Any) -> list[str]:
    host, port = connection._dns_host, connection.port
    known: dict[tuple[str, int], list[str]] = getattr(_found, "addresses", {})
    if (host, port) in known:
        return known[host, port]
    try:
        found = _lookup(host, port, connection.timeout)
    except TimeoutError as error:
        raise urllib3.exceptions.ConnectTimeoutError(connection, "the name was not resolved in time") from error
    except (socket.gaierror, UnicodeError) as error:
        if _is_out_of_files():  # the resolver's own error has no such cause
            raise OutOfFilesError from error
        cause = error if isinstance(error, socket.gaierror) else socket.gaierror(str(error))
        raise urllib3.exceptions.NameResolutionError(connection.host, connection, cause) from error
    known[host, port] = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return known[host, port]


def _lookup(host: str, port: int, timeout_s: float) -> Any:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):  # a name, which needs a resolver
        work = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        return _resolvers.call(work, timeout_s=timeout_s, key=host)


def _connect_first(connection: Any, addresses: list[str], deadline: float) -> socket.socket:
    for last, address in enumerate(addresses, start=1 - len(addresses)):
        left = deadline - time.monotonic()
        if left <= 0:
            raise urllib3.exceptions.ConnectTimeoutError(connection, "connect timeout")
        try:
            connected = urllib3.util.connection.create_connection(
                (address, connection.port),
                left,
                source_address=connection.source_address,
                socket_options=connection.socket_options,
            )
        except TimeoutError as error:
            raise urllib3.exceptions.ConnectTimeoutError(connection, "connect timeout") from error
        except OSError as error:
            if error.errno in _OUT_OF_FILES:
                raise OutOfFilesError from error
            if last == 0:
                raise urllib3.exceptions.NewConnectionError(connection, str(error)) from error
        else:
            connected.settimeout(max(0.001, deadline - time.monotonic()))  # a TLS handshake follows
            return connected
    raise AssertionError("there is at least one address")


def _is_out_of_files() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in _OUT_OF_FILES
    return False
