"""Objects in stores, within limits.

tos:// goes through TOS's own SDK, s3:// and the other schemes through fsspec. The clients find their credentials
themselves and keep their connections from one picture to the next; what they say of a failure is not repeated, since
it may hold keys and signed addresses.

Only schemes on a list are read. fsspec knows dozens more, and chains of them (``a://…::b://…``): some of these connect
to hosts that the text names, open local files, or evaluate what they read as templates:
https://filesystem-spec.readthedocs.io/en/latest/features.html#url-chaining
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from qwenvl_kit.errors import MissingExtra, RowError
from qwenvl_kit.images.fetch.dispatch import (
    WITHOUT_LEASE,
    Fetched,
    RetryAt,
    check_bytes,
    host_key,
    lease,
    reason,
    timeout_error,
    too_large,
)
from qwenvl_kit.images.fetch.logs import quiet
from qwenvl_kit.images.fetch.retry import TransientError, host_retry_state
from qwenvl_kit.images.fetch.thread_group import ThreadGroup

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwenvl_kit.images.budget import Lease
    from qwenvl_kit.images.fetch.dispatch import FetchLimits

SCHEMES = ("http", "https", "file", "s3", "s3a", "gs", "gcs", "tos", "hf", "data")
"""Schemes that are always allowed; the first three and the last are not read here."""

# Packages that a scheme needs, and the extra that brings them; hf:// needs what the models need.
_NEEDS = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "tos": ("tos", "tos"),
}
# Here the host in an address is a bucket; what serves it is set by who runs this, not by who wrote the address.
_BUCKETS = frozenset({"s3", "s3a", "tos", "gs", "gcs", "oss", "az", "abfs", "hf", "memory"})
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for another endpoint; "
    "FSSPEC_S3_ANON=true for public buckets)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS (FSSPEC_GS_TOKEN=anon for public buckets)",
    "hf": "HF_TOKEN",
}
_KNOWN = {"FileNotFoundError": "not found", "PermissionError": "access denied"}
_STATUSES: dict[object, str] = {401: "access denied", 403: "access denied", 404: "not found"}
# Clients' exceptions for an answer that broke off, by name: none of their packages need be installed.
_BROKEN_OFF = frozenset(
    (
        *("ChunkedEncodingError", "ClientPayloadError", "ConnectionResetError", "IncompleteRead"),
        *("IncompleteReadError", "ProtocolError", "RemoteProtocolError", "ResponseStreamingError"),
        *("ServerDisconnectedError",),
    )
)
_CHUNK = 1 << 20
_READ_AHEAD = 1 << 16  # where a client must read ahead
# The clients retry for minutes, and most cannot be ended from outside.
_readers = ThreadGroup("qwenvl_kit-store", 128, 16)


class Opened(Protocol):
    """An object that is open for reading."""

    size: int | None
    """Its bytes, None where they are not known before all are read."""

    def read(self, n_bytes: int) -> bytes:
        """Return at most so many bytes, none at the end."""

    def close(self) -> None:
        """Give its connection back or up."""


class ObjectGet:
    """One object's fetch under way.

    Parameters
    ----------
    address : str
        With any scheme but http, https and file.
    label : str
        Its name for messages, free of secrets.
    limits : FetchLimits
        Time, bytes, hosts and schemes allowed.
    """

    def __init__(self, address: str, label: str, limits: FetchLimits) -> None:
        self._address, self._label, self._limits = address, label, limits
        self._scheme = address.partition("://")[0].lower()
        self._key = host_key(address)
        self._deadline: float | None = None
        self._n_retries = 0

    def try_once(self) -> Fetched:
        """Read the object, or tell when to try again.

        Raises
        ------
        RetryAt
            An answer broke off, which may have passed by then.
        RowError
            It cannot be had within the limits, of the stage ``fetch``.
        """
        self._check_scheme()
        if self._deadline is None:
            self._deadline = time.monotonic() + self._limits.timeout_s
        try:
            return self._read()
        except TransientError as fault:
            at = host_retry_state(self._key).retry_at(fault, self._n_retries, self._deadline)
            if at is None:
                tried = f" (asked {self._n_retries + 1} times)" if self._n_retries else ""
                raise RowError("fetch", f"{fault.message}{tried}") from fault
            self._n_retries += 1
            raise RetryAt(at) from fault
        except (RowError, RetryAt):
            raise
        except MissingExtra as error:
            raise RowError("fetch", str(error)) from error
        except TimeoutError as error:
            raise timeout_error(self._label, self._limits) from error
        except Exception as error:  # each store's client has a hierarchy of its own
            raise RowError("fetch", f"{self._label} cannot be read: {_reason(self._scheme, error)}") from error

    def _check_scheme(self) -> None:
        """Refuse whatever is not on the list, before anything is imported or asked for."""
        allowed = (*SCHEMES, *self._limits.extra_schemes)
        if "::" in self._address:
            raise RowError("fetch", f"{self._label}: addresses that are chained with '::' are not read")
        if self._scheme not in allowed:
            more = "" if self._limits.allow_private_hosts else " and allow_private_hosts=True"
            raise RowError(
                "fetch",
                f"{self._label}: {self._scheme}:// addresses are not read; allowed are {', '.join(allowed)}; pass "
                f"extra_schemes=[{self._scheme!r}]{more} if you trust them",
            )
        if not self._limits.allow_private_hosts and self._scheme not in _BUCKETS:
            raise RowError(
                "fetch",
                f"{self._label}: allow_private_hosts=False refuses {self._scheme}:// addresses, because their host "
                "cannot be checked; pass allow_private_hosts=True if that is meant",
            )

    def _read(self) -> Fetched:
        stop = threading.Event()
        try:
            opened = self._within(functools.partial(self._open, stop))
            try:
                if opened.size is not None:
                    check_bytes(opened.size, self._label, self._limits)
                held, waited_s = self._lease(opened.size)
            except RowError:
                with contextlib.suppress(Exception):  # it is not read, whatever becomes of its connection
                    self._within(opened.close)
                raise
            self._deadline = self._end() + waited_s
            return Fetched(self._within(functools.partial(self._body, opened, stop, held)), None, held)
        finally:
            stop.set()  # a thread that is left behind reads no further

    def _lease(self, n_bytes: int | None) -> tuple[Lease | None, float]:
        return lease(self._limits.max_image_bytes if n_bytes is None else n_bytes, self._label)

    def _end(self) -> float:
        assert self._deadline is not None, "the fetch has begun"
        return self._deadline

    def _within(self, work: Callable[[], Any]) -> Any:
        """Work on a thread of its own, which is left behind where it is late."""
        return _readers.call(work, timeout_s=max(0.0, self._end() - time.monotonic()), key=self._key)

    def _open(self, stop: threading.Event) -> Opened:
        opener = _opener(self._scheme, self._label)
        with quiet(self._scheme):
            opened = opener(self._address, self._label, self._end())
        if stop.is_set():
            opened.close()
        return opened

    def _body(self, opened: Opened, stop: threading.Event, held: Lease | None) -> bytes:
        """Read up to the limit; `held` is kept for as long as this runs, also where nobody waits for it."""
        body, n_most = io.BytesIO(), self._limits.max_image_bytes
        with quiet(self._scheme):
            try:
                while not stop.is_set() and (chunk := opened.read(min(_CHUNK, n_most + 1 - body.tell()))):
                    body.write(chunk)
                    if body.tell() > n_most:
                        raise too_large(self._label, None, self._limits)
            except Exception as error:
                if type(error).__name__ in _BROKEN_OFF:
                    message = f"{self._label} cannot be read: the connection broke off"
                    raise TransientError("fetch", message) from error
                raise
            finally:
                opened.close()
        if opened.size is not None and body.tell() < opened.size:
            raise TransientError("fetch", f"{self._label} cannot be read: the connection broke off")
        return body.getvalue()


def _opener(scheme: str, label: str) -> Callable[[str, str, float], Opened]:
    package, extra = _NEEDS.get(scheme, ("fsspec", "s3"))
    try:
        importlib.import_module(package)
        if scheme == "tos":
            from qwenvl_kit.images.fetch import tos

            return tos.open_object
        fsspec = importlib.import_module("fsspec")
    except ImportError as error:
        raise MissingExtra(f"reading {scheme}:// addresses", extra) from error
    if scheme not in fsspec.available_protocols():
        raise RowError("fetch", f"{label}: nothing here reads {scheme}:// addresses; use https, s3 or tos")
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:  # fsspec names the package that the scheme needs
        raise RowError("fetch", f"{label} cannot be read: {error}") from error
    return _open_s3 if scheme in ("s3", "s3a") else _open_fsspec


def _open_s3(address: str, label: str, deadline: float) -> Opened:
    """Open with one request, whose answer is read as it comes; fsspec's own files ask for the size first."""
    import fsspec

    return _S3Object(fsspec.filesystem("s3", **_options("s3", address)), address, deadline)


class _S3Object:
    """An object of S3, read from the answer to one request; what is late is cancelled."""

    def __init__(self, files: Any, address: str, deadline: float) -> None:
        self._files, self._deadline = files, deadline
        bucket, key, version = files.split_path(files._strip_protocol(address))
        if not key:
            raise FileNotFoundError(address)
        options = {**getattr(files, "req_kw", {}), **({"VersionId": version} if version else {})}
        answer = self._sync(files._call_s3, "get_object", Bucket=bucket, Key=key, **options)
        self.size: int | None = answer.get("ContentLength")
        self._body = answer["Body"]

    def read(self, n_bytes: int) -> bytes:
        data: bytes = self._sync(self._read, n_bytes)
        return data

    def close(self) -> None:
        self._files.loop.call_soon_threadsafe(self._body.close)

    async def _read(self, n_bytes: int) -> bytes:
        body = io.BytesIO()
        while body.tell() < n_bytes and (chunk := await self._body.read(n_bytes - body.tell())):
            body.write(chunk)
        return body.getvalue()

    def _sync(self, function: Any, *arguments: Any, **options: Any) -> Any:
        from fsspec.asyn import sync

        return sync(
            self._files.loop, function, *arguments, timeout=max(0.001, self._deadline - time.monotonic()), **options
        )


def _open_fsspec(address: str, label: str, deadline: float) -> Opened:
    import fsspec

    scheme = address.partition("://")[0].lower()
    files = fsspec.filesystem(scheme, **_options(scheme, address))
    # 0 makes the hub's files come as a stream, in one request; others are asked for piece by piece.
    options = {"block_size": 0} if scheme == "hf" else {"block_size": _READ_AHEAD}
    return _FsspecFile(files.open(files._strip_protocol(address), "rb", **options))


def _options(scheme: str, address: str) -> dict[str, Any]:
    """Return what an address says of its file system; of those always allowed, nothing but the wish for a version.

    Where a store is, and who asks, is set by who runs this.
    """
    import fsspec

    found: dict[str, Any] = fsspec.get_filesystem_class(scheme)._get_kwargs_from_urls(address) or {}
    return {name: value for name, value in found.items() if name == "version_aware" or scheme not in SCHEMES}


class _FsspecFile:
    """A file that fsspec opened."""

    def __init__(self, file: Any) -> None:
        self._file = file
        size = getattr(file, "size", None)
        self.size = size if isinstance(size, int) else None

    def read(self, n_bytes: int) -> bytes:
        data: bytes = self._file.read(n_bytes)
        return data

    def close(self) -> None:
        self._file.close()


def _reason(scheme: str, error: Any) -> str:
    """The kind of failure only."""
    name = type(error).__name__
    if "credential" in name.lower():
        family = {"s3a": "s3", "gcs": "gs"}.get(scheme, scheme)
        return f"no credentials; set {_CREDENTIALS.get(family, 'those of the store')} in the environment"
    status = getattr(getattr(error, "response", None), "status_code", None)
    return _KNOWN.get(name) or _STATUSES.get(status) or reason(error)


assert WITHOUT_LEASE >= _CHUNK, "the first chunk is read before memory is asked for"
