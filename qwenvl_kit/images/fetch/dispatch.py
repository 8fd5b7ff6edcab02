"""Fetching the encoded bytes that an `ImageSource` names, within limits.

It never looks inside the bytes. http and https go through `qwenvl_kit.images.fetch.http`, stores of objects through
`qwenvl_kit.images.fetch.object_storage`, files through `qwenvl_kit.images.fetch.files`.
"""

from __future__ import annotations

import base64
import binascii
import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.budget import Budget, Lease

if TYPE_CHECKING:
    from qwenvl_kit.images.fetch.cache import FetchCache
    from qwenvl_kit.options import Config
    from qwenvl_kit.types import ImageSource

WITHOUT_LEASE = 1 << 20
"""Bytes of one file that are read before more memory is asked for."""

# Encoded files in memory at a time: three of the largest that the default allows, whatever the number of threads.
_bodies = Budget(192 << 20)
# Longest wait for memory. 32 threads that wait for 2 decoders of 5 s a picture take 80 s; nothing waits for ever.
_LONGEST_WAIT_S = 600.0


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Limits on one fetch, as the options of `Config` of the same names say them.

    Attributes
    ----------
    headers : tuple of (str, str)
        Sent with each request, but not on to another host.
    extra_schemes : tuple of str
        Schemes allowed beyond those that always are.
    local_paths : bool or str
        Whether local files may be named, or the folder that they must lie in.
    """

    timeout_s: float
    max_image_bytes: int
    allow_private_hosts: bool
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    extra_schemes: tuple[str, ...] = ()
    local_paths: bool | str = True

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return the limits that a config asks for."""
        return cls(
            config.timeout_s,
            config.max_image_bytes,
            config.allow_private_hosts,
            tuple((config.headers or {}).items()),
            tuple(config.extra_schemes),
            config.local_paths,
        )


@dataclass(frozen=True, slots=True)
class Fetched:
    """Encoded bytes, and the version by which their place tells later whether they are still the same.

    Attributes
    ----------
    data : bytes
        The file as it is.
    version : str or None
        A file's time and size, or an address's ETag or date; None where there is none.
    lease : Lease or None
        The memory that `data` takes of what all fetches share, until `release`, or until this object is gone.
    """

    data: bytes = field(repr=False)
    version: str | None = None
    lease: Lease | None = field(default=None, repr=False, compare=False)

    def release(self) -> None:
        """Give the memory back to other fetches; a second call does nothing."""
        if self.lease is not None:
            self.lease.release()


class RetryAt(Exception):
    """A fetch has to wait: its host rests, or a fault may have passed later.

    Attributes
    ----------
    at : float
        Time of ``time.monotonic()`` from which on to try again.
    """

    def __init__(self, at: float) -> None:
        super().__init__(f"try again in {max(0.0, at - time.monotonic()):.1f} s")
        self.at = at


class Fetch:
    """One fetch under way, which never sleeps, so that a thread can turn to another one in the meantime.

    Parameters
    ----------
    source : ImageSource
        Of the kind ``url``, ``path``, ``remote``, ``base64`` or ``bytes``.
    limits : FetchLimits
        Time, bytes and hosts allowed. The time begins with the first request.
    cache : FetchCache, optional
        Where files of hosts are looked for, and kept.

    Attributes
    ----------
    host : str or None
        What to queue by, such as ``https://example.org:443`` or ``s3://bucket``; None for what needs no network.
    """

    def __init__(self, source: ImageSource, limits: FetchLimits, cache: FetchCache | None = None) -> None:
        self._source, self._limits, self._cache = source, limits, cache
        self.host = host_of(source)
        self._once: Callable[[], Fetched] | None = None

    def try_once(self) -> Fetched:
        """Fetch, or tell when to try again.

        Raises
        ------
        RetryAt
            Try again from then on, which is before the fetch's time is over.
        RowError
            It cannot be had within the limits, of the stage ``fetch``.
        """
        try:
            return self._read() if self._cache is None or self.host is None else self._read_once(self._cache)
        except (RowError, RetryAt):
            raise
        except Exception as error:  # whatever a library raises is one row's error
            raise RowError("fetch", f"{self._source.label} cannot be read: {reason(error)}") from error

    def _read(self) -> Fetched:
        if self._once is None:
            self._once = _reader(self._source, self._limits)
        return self._once()

    def _read_once(self, cache: FetchCache) -> Fetched:
        kept = cache.get(self._source, self._limits)
        if kept is None:
            kept = self._read()
            cache.put(self._source, self._limits, kept)
        return kept


def fetch(source: ImageSource, limits: FetchLimits) -> Fetched:
    """Read the encoded bytes of a picture.

    Parameters
    ----------
    source : ImageSource
        Of the kind ``url``, ``path``, ``remote``, ``base64`` or ``bytes``.
    limits : FetchLimits
        Time, bytes and hosts allowed.

    Returns
    -------
    Fetched
        The bytes and their version.

    Raises
    ------
    RowError
        It cannot be had within the limits, of the stage ``fetch``.
    """
    one = Fetch(source, limits)
    while True:
        try:
            return one.try_once()
        except RetryAt as later:
            sleep_until(later.at)


def host_of(source: ImageSource) -> str | None:
    """Return what a source queues by, such as ``https://example.org:443``; None for what needs no network."""
    return host_key(source.value) if source.kind in ("url", "remote") else None


def is_unchanged(source: ImageSource, version: str, limits: FetchLimits) -> bool:
    """Ask the place of a picture once whether it still holds what it held at `version`; False where it cannot tell."""
    try:
        if source.kind == "path":
            from qwenvl_kit.images.fetch import files

            return files.version_of(source.value, source.label, limits) == version
        if source.kind == "url":
            from qwenvl_kit.images.fetch import http

            return http.is_unchanged(source.value, source.label, version, limits)
    except Exception:  # noqa: BLE001  # fetching will tell what is wrong
        pass
    return False


def _reader(source: ImageSource, limits: FetchLimits) -> Callable[[], Fetched]:
    """Return what each try calls. Clients are imported where an address is first read."""
    if source.kind == "url":
        from qwenvl_kit.images.fetch import http

        return http.HttpGet(source.value, source.label, limits).try_once
    if source.kind == "remote":
        from qwenvl_kit.images.fetch import object_storage

        return object_storage.ObjectGet(source.value, source.label, limits).try_once
    if source.kind == "path":
        from qwenvl_kit.images.fetch import files

        return lambda: files.read(source.value, source.label, limits)
    if source.kind == "base64":
        return lambda: _fetch_base64(source, limits)
    if source.kind == "bytes":
        return lambda: _fetch_bytes(source, limits)
    raise RowError("fetch", f"{source.label} is already in memory, and is not fetched")


def _fetch_bytes(source: ImageSource, limits: FetchLimits) -> Fetched:
    data: bytes = source.value
    check_bytes(len(data), source.label, limits)
    return Fetched(data)


def _fetch_base64(source: ImageSource, limits: FetchLimits) -> Fetched:
    """Read base64 in all its dresses: data: prefix, white space, url-safe alphabet, missing padding."""
    text: str = source.value.strip()
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma:
            raise RowError("fetch", f"{source.label} starts with 'data:' but has no comma before its data")
        if not header.lower().rstrip().endswith("base64"):
            data = unquote_to_bytes(text.encode(errors="surrogatepass"))
            check_bytes(len(data), source.label, limits)
            return Fetched(data)
        text = unquote(text)
    compact = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    check_bytes(len(compact) * 3 // 4, source.label, limits)
    try:
        return Fetched(base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True))
    except (binascii.Error, ValueError) as error:
        raise RowError("fetch", f"{source.label} is not valid base64: {error}") from error


# ------------------------------------------------------------------ what the ways of fetching share


def host_key(address: str) -> str:
    """Return the scheme and the host with its port, in one spelling.

    Examples
    --------
    >>> host_key("HTTPS://me:pw@Example.org/a.png"), host_key("s3://bucket/a.png")
    ('https://example.org:443', 's3://bucket')
    """
    scheme = address.partition(":")[0].strip().lower()
    try:
        parts = urlsplit(address.strip())
        name, port = parts.netloc.rpartition("@")[2].lower(), parts.port
    except ValueError:  # what is wrong with it will be told when it is fetched
        return f"{scheme}://"
    default = {"http": 80, "https": 443}.get(scheme)
    if port is not None or default is None:
        return f"{scheme}://{name}"
    return f"{scheme}://{name.removesuffix(':')}:{default}"


def lease(n_bytes: int, label: str) -> tuple[Lease | None, float]:
    """Take the memory for a file of `n_bytes`, all at once, so that no two fetches wait for each other.

    Returns
    -------
    lease : Lease or None
        None for a small file, which is not counted.
    waited_s : float
        Time spent on it, which is not the host's.
    """
    if n_bytes <= WITHOUT_LEASE:
        return None, 0.0
    started = time.monotonic()
    try:
        held = _bodies.take(n_bytes, timeout_s=_LONGEST_WAIT_S)
    except TimeoutError as error:
        raise RowError(
            "fetch",
            f"{label} found no room in memory within {_LONGEST_WAIT_S:.0f} s beside other pictures that were fetched "
            "and not yet used; use fewer at a time",
        ) from error
    return held, time.monotonic() - started


def sleep_until(at: float) -> None:
    """Sleep until a time of ``time.monotonic()``."""
    time.sleep(max(0.0, at - time.monotonic()))


def check_bytes(n_bytes: int, label: str, limits: FetchLimits) -> None:
    """Refuse a file of more bytes than allowed."""
    if n_bytes > limits.max_image_bytes:
        raise too_large(label, n_bytes, limits)


def too_large(label: str, n_bytes: int | None, limits: FetchLimits) -> RowError:
    """Return the fault of a file of more bytes than allowed; None where it was not read to its end."""
    most = f"max_image_bytes={limits.max_image_bytes}"
    what = f"has more than {most} bytes" if n_bytes is None else f"has {n_bytes} bytes, more than {most}"
    return RowError("fetch", f"{label} {what}; raise it if you trust it")


def timeout_error(label: str, limits: FetchLimits) -> RowError:
    """Return the fault of a place that did not answer in time."""
    return RowError(
        "fetch", f"{label} was not fetched within timeout_s={limits.timeout_s:g}; raise it if the host is slow"
    )


def reason(error: BaseException) -> str:
    """Name a library's exception without its message, which may hold keys and signed addresses."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if getattr(one, "errno", None) in (errno.EMFILE, errno.ENFILE):
            return "too many open files in this process (see ulimit -n)"
        one = one.__cause__ or one.__context__
    if isinstance(error, MemoryError):
        return "out of memory"
    strerror = error.strerror if type(error).__module__ == "builtins" and isinstance(error, OSError) else None
    return f"{type(error).__name__} ({strerror})" if strerror else type(error).__name__
