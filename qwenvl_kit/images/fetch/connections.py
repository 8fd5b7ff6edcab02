"""Pools of HTTP and HTTPS connections, bounded per host and over all hosts.

`qwenvl_kit.images.fetch.ssrf` opens each connection.
"""

from __future__ import annotations

import functools
import http.client
import io
import os
import queue
import socket
import threading
import time
from collections import OrderedDict
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from qwenvl_kit.images.fetch.idle import register_closer
from qwenvl_kit.images.fetch.limits import MAX_PER_HOST
from qwenvl_kit.images.fetch.ssrf import OutOfFilesError, connect

MAX_IDLE = 128
"""Connections kept for the next request, over all hosts; fewer where few files may be open."""

_MAX_HOSTS = 1024  # whose pools are kept; without connections they are small
_MAX_INTERIM = 16  # responses of status 1xx before the response itself


@functools.cache
def pool(private: bool) -> urllib3.PoolManager:
    """Return the pool of public hosts, or of all: a connection is only reused under the policy that opened it."""
    checked = urllib3.PoolManager(num_pools=_MAX_HOSTS, maxsize=MAX_PER_HOST, block=True)
    checked.pool_classes_by_scheme = {
        "http": _pool_class(HTTPConnectionPool, HTTPConnection, private=private),
        "https": _pool_class(HTTPSConnectionPool, HTTPSConnection, private=private),
    }
    return checked


@register_closer
def close_idle_connections() -> None:
    """Close idle connections; those in use stay."""
    _idle.close()


def extend_deadline(response: Any, seconds: float) -> None:
    """Move the deadline of a response whose reader had to wait for memory."""
    body = getattr(response, "_original_response", None)
    reader = getattr(getattr(body, "fp", None), "raw", None)
    if isinstance(reader, _DeadlineReader):
        reader.deadline += seconds


def _pool_class(pool: Any, connection: Any, *, private: bool) -> Any:
    def new_connection(self: Any) -> socket.socket:
        """Take the place of ``HTTPConnection._new_conn``."""
        deadline = time.monotonic() + self.timeout
        try:
            return connect(self, deadline, private=private)
        except OutOfFilesError:
            close_idle_connections()
            return connect(self, deadline, private=private)

    members = {"_new_conn": new_connection, "response_class": _DeadlineResponse}
    checked = type(f"Checked{connection.__name__}", (connection,), members)
    return type(f"Checked{pool.__name__}", (pool,), {"ConnectionCls": checked, "QueueCls": _Slots})


class _Slots:
    """The queue of one host's pool, as urllib3 expects it: it counts slots, and takes connections from `_idle`.

    urllib3 bounds the connections of a host, and the number of hosts, but not all connections together.
    """

    def __init__(self, maxsize: int) -> None:
        self._n_most = self._n_free = maxsize
        self._freed = threading.Condition()
        self._process = os.getpid()

    def put(self, connection: Any, block: bool = True, timeout: float | None = None) -> None:
        """Return a slot, and keep its connection where it is open; None of a new pool changes nothing."""
        if connection is None and self._n_free == self._n_most:
            return
        if connection is not None and not connection.is_closed:
            _idle.add(self, connection)
        with self._freed:
            self._n_free += 1
            self._freed.notify()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take a slot, with the connection that was used last, or None to open a new one."""
        if self._process != os.getpid():  # the parent's lock may never be free
            raise queue.Empty
        with self._freed:
            if not self._freed.wait_for(lambda: self._n_free > 0, timeout if block else 0):
                raise queue.Empty
            self._n_free -= 1
        return _idle.take(self)

    def qsize(self) -> int:
        return self._n_free


class _Idle:
    """Idle connections of all hosts; beyond the limit, the least recently used are closed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the garbage collector may end a pool while its own thread holds the lock
        self._kept: OrderedDict[Any, _Slots] = OrderedDict()
        self._of: dict[_Slots, list[Any]] = {}

    def add(self, slots: _Slots, connection: Any) -> None:
        with self._lock:
            self._kept[connection] = slots
            self._of.setdefault(slots, []).append(connection)
            surplus = []
            while len(self._kept) > _n_idle():
                oldest, its_slots = self._kept.popitem(last=False)
                self._forget(its_slots, oldest)
                surplus.append(oldest)
        for one in surplus:
            one.close()

    def take(self, slots: _Slots) -> Any:
        with self._lock:
            if slots not in self._of:
                return None
            latest = self._of[slots][-1]
            del self._kept[latest]
            self._forget(slots, latest)
            return latest

    def close(self) -> None:
        with self._lock:
            kept = list(self._kept)
            self._kept.clear()
            self._of.clear()
        for connection in kept:
            connection.close()

    def abandon(self) -> None:
        """Close a forked child's sockets without a TLS shutdown, and without the parent's locks."""
        for connection in list(self._kept):
            if connection.sock is not None:
                connection.sock.close()

    def _forget(self, slots: _Slots, connection: Any) -> None:
        self._of[slots].remove(connection)
        if not self._of[slots]:
            del self._of[slots]


_idle = _Idle()


@functools.cache
def _n_idle() -> int:
    """Return `MAX_IDLE`, or a quarter of the files that may be open where that is less."""
    try:
        import resource

        n_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError):  # Windows
        return MAX_IDLE
    return MAX_IDLE if n_files == resource.RLIM_INFINITY else max(1, min(MAX_IDLE, n_files // 4))


class _DeadlineResponse(http.client.HTTPResponse):
    """A response whose timeout covers all reads, where the library would grant it anew for every byte of a header."""

    def __init__(self, sock: socket.socket, *rest: Any, **options: Any) -> None:
        super().__init__(sock, *rest, **options)
        self.fp: io.BufferedReader = io.BufferedReader(_DeadlineReader(self.fp.detach(), sock))

    def _read_status(self) -> tuple[str, int, str]:
        """Skip interim responses, such as 103 Early Hints; the library skips 100 alone."""
        for _ in range(_MAX_INTERIM):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 100 <= status < 200 or status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException(f"got more than {_MAX_INTERIM} interim responses")


class _DeadlineReader(io.RawIOBase):
    """Reads from a socket until its first timeout has passed."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw, self._sock = raw, sock
        self.deadline = time.monotonic() + (sock.gettimeout() or 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the response was not complete in time")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _after_fork() -> None:
    """Reset the pools of a forked child: two processes on one connection get each other's responses.

    https://github.com/urllib3/urllib3/issues/850
    """
    global _idle
    inherited, _idle = _idle, _Idle()
    pool.cache_clear()
    inherited.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
