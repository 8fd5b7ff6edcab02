"""Fetch the encoded bytes of an `ImageSource`, by the client of its kind."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.fetch import inline
from qwenvl_kit.images.fetch.fetched import Fetched, RetryAt
from qwenvl_kit.images.source_context import safe_reason
from qwenvl_kit.images.urls import host_key

if TYPE_CHECKING:
    from qwenvl_kit.images.fetch.cache import FetchCache
    from qwenvl_kit.images.fetch.limits import FetchLimits
    from qwenvl_kit.types import ImageSource

Reader = Callable[[], Fetched]
"""One try of a fetch; raises `RetryAt` where a later one may succeed."""


class Fetch:
    """One fetch under way; it never sleeps, so that a thread can do others in the meantime.

    Parameters
    ----------
    source : ImageSource
        Of the kind ``url``, ``path``, ``remote``, ``base64`` or ``bytes``.
    limits : FetchLimits
        Time, bytes and hosts allowed. The time begins with the first request.
    cache : FetchCache, optional
        Keeps files of hosts between fetches.
    """

    def __init__(self, source: ImageSource, limits: FetchLimits, cache: FetchCache | None = None) -> None:
        self._source, self._limits = source, limits
        self._cache = None if host_of(source) is None else cache
        self._reader: Reader | None = None

    def try_once(self) -> Fetched:
        """Return the bytes, or raise the time of the next try.

        Raises
        ------
        RetryAt
            Try again at its time, which is before the deadline.
        RowError
            The source cannot be read within the limits, of the stage ``fetch``.
        """
        try:
            return self._read() if self._cache is None else self._read_cached(self._cache)
        except RetryAt:
            raise
        except RowError as error:
            error.name_source(self._source.label)
            raise
        except Exception as error:  # a library's message may contain keys and signed URLs
            fault = RowError("fetch", f"Cannot read the image: {safe_reason(error)}.")
            fault.name_source(self._source.label)
            raise fault from error

    def _read(self) -> Fetched:
        if self._reader is None:
            self._reader = _reader(self._source, self._limits)
        return self._reader()

    def _read_cached(self, cache: FetchCache) -> Fetched:
        kept = cache.get(self._source, self._limits)
        if kept is None:
            kept = self._read()
            cache.put(self._source, self._limits, kept)
        return kept


def fetch(source: ImageSource, limits: FetchLimits, cache: FetchCache | None = None) -> Fetched:
    """Read the encoded bytes of an image, with all retries; parameters and errors are those of `Fetch`."""
    one = Fetch(source, limits, cache)
    while True:
        try:
            return one.try_once()
        except RetryAt as later:
            time.sleep(max(0.0, later.at - time.monotonic()))


def host_of(source: ImageSource) -> str | None:
    """Return the host that a source is fetched from, such as ``https://example.org:443``; None for local ones."""
    return host_key(source.value) if source.kind in ("url", "remote") else None


def is_unchanged(source: ImageSource, version: str, limits: FetchLimits) -> bool:
    """Return whether a source still has a version; False where that is unknown."""
    try:
        if source.kind == "path":
            from qwenvl_kit.images.fetch import files

            return files.version_of(source.value, limits) == version
        if source.kind == "url":
            from qwenvl_kit.images.fetch import http

            return http.is_unchanged(source.value, version, limits)
    except Exception:  # noqa: BLE001  # fetching raises the error
        pass
    return False


def _reader(source: ImageSource, limits: FetchLimits) -> Reader:
    """Return the function of one try. Clients are imported with the first source of their kind."""
    if source.kind == "url":
        from qwenvl_kit.images.fetch import http

        return http.HttpGet(source.value, limits).try_once
    if source.kind == "remote":
        from qwenvl_kit.images.fetch import object_storage

        return object_storage.ObjectGet(source.value, limits).try_once
    if source.kind == "path":
        from qwenvl_kit.images.fetch import files

        return lambda: files.read(source.value, limits)
    if source.kind == "base64":
        return lambda: inline.read_base64(source.value, limits)
    if source.kind == "bytes":
        return lambda: inline.read_bytes(source.value, limits)
    raise RowError("fetch", f"A source of kind {source.kind!r} is already in memory, and is not fetched.")
