"""Close the connections that HTTP clients keep for a next request.

A client registers here when it is imported, so that closing imports no client.
"""

from __future__ import annotations

from collections.abc import Callable

_closers: list[Callable[[], None]] = []


def register_closer(close: Callable[[], None]) -> Callable[[], None]:
    """Add a function that closes a client's idle connections, and return it."""
    _closers.append(close)
    return close


def close_idle_connections() -> None:
    """Close idle connections of all clients; those in use stay, and later requests open new ones."""
    for close in _closers:
        close()
