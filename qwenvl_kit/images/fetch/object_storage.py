"""Read objects of object storage, within limits.

tos:// goes through TOS's own SDK, s3:// and the other schemes through fsspec. The clients find their credentials
themselves and keep their connections between images. Their error messages are not repeated, since these may contain
keys and signed URLs.

Only schemes on a list are read. fsspec has dozens more, and chains of them (``a://…::b://…``): some of these connect
to hosts that the text names, open local files, or evaluate what they read as templates:
https://filesystem-spec.readthedocs.io/en/latest/features.html#url-chaining
"""

from __future__ import annotations

import contextlib
import functools
import io
import threading
import time
from typing import TYPE_CHECKING, Any

from qwenvl_kit.errors import MissingExtra, RowError
from qwenvl_kit.images.fetch.fetched import WITHOUT_LEASE, Fetched, RetryAt, lease
from qwenvl_kit.images.fetch.logs import quiet
from qwenvl_kit.images.fetch.object_clients import SCHEMES, find_opener
from qwenvl_kit.images.fetch.retry import TransientError, broken_connection, host_retry_state
from qwenvl_kit.images.fetch.thread_group import ThreadGroup
from qwenvl_kit.images.source_context import safe_reason
from qwenvl_kit.images.urls import host_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from qwenvl_kit.images.budget import Lease
    from qwenvl_kit.images.fetch.limits import FetchLimits
    from qwenvl_kit.images.fetch.object_clients import OpenObject

# Here the host in a URL is a bucket; what serves it is set by who runs this, not by who wrote the URL.
_BUCKETS = frozenset({"s3", "s3a", "tos", "gs", "gcs", "oss", "az", "abfs", "hf", "memory"})
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for another endpoint; "
    "FSSPEC_S3_ANON=true for public buckets)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS (FSSPEC_GS_TOKEN=anon for public buckets)",
    "hf": "HF_TOKEN",
}
_KNOWN = {"FileNotFoundError": "not found", "PermissionError": "access denied"}
_STATUSES: dict[object, str] = {401: "access denied", 403: "access denied", 404: "not found"}
# Clients' exceptions for a response that broke off, by name: none of their packages need be installed.
_BROKEN = frozenset(
    (
        *("ChunkedEncodingError", "ClientPayloadError", "ConnectionResetError", "IncompleteRead"),
        *("IncompleteReadError", "ProtocolError", "RemoteProtocolError", "ResponseStreamingError"),
        *("ServerDisconnectedError",),
    )
)
_CHUNK = 1 << 20
# The clients retry for minutes, and most cannot be ended from outside.
_readers = ThreadGroup("qwenvl_kit-store", 128, 16)


class ObjectGet:
    """The fetch of one object, with its retries.

    Parameters
    ----------
    url : str
        With any scheme but http, https and file.
    limits : FetchLimits
        Time, bytes, hosts and schemes allowed.
    """

    def __init__(self, url: str, limits: FetchLimits) -> None:
        self._url, self._limits = url, limits
        self._scheme = url.partition("://")[0].lower()
        self._key = host_key(url)
        self._deadline: float | None = None
        self._n_retries = 0

    def try_once(self) -> Fetched:
        """Read the object, or raise the time of the next try.

        Raises
        ------
        RetryAt
            The connection broke off.
        RowError
            The object cannot be read within the limits, of the stage ``fetch``.
        """
        _check_scheme(self._url, self._scheme, self._limits)
        if self._deadline is None:
            self._deadline = time.monotonic() + self._limits.timeout_s
        try:
            return self._read()
        except TransientError as fault:
            outcome = host_retry_state(self._key).retry_or_fail(fault, self._n_retries, self._deadline)
            self._n_retries += 1
            raise outcome from fault
        except (RowError, RetryAt):
            raise
        except MissingExtra as error:
            raise RowError("fetch", str(error)) from error
        except TimeoutError as error:
            raise self._limits.timeout_error() from error
        except Exception as error:  # each client has its own hierarchy of exceptions
            raise RowError("fetch", f"Cannot read the image: {_reason(self._scheme, error)}.") from error

    def _read(self) -> Fetched:
        stop = threading.Event()
        try:
            opened = self._within_deadline(functools.partial(self._open, stop))
            held, waited_s = self._lease(opened)
            self._deadline = self._end() + waited_s
            body = self._within_deadline(functools.partial(self._body, opened, stop, held))
            return Fetched(body, None, held)
        finally:
            stop.set()  # a thread that is left behind reads no further

    def _lease(self, opened: OpenObject) -> tuple[Lease | None, float]:
        try:
            if opened.size is not None:
                self._limits.check_bytes(opened.size)
            return lease(self._limits.part(self._limits.max_image_bytes if opened.size is None else opened.size))
        except RowError:
            with contextlib.suppress(Exception):  # it is not read, whatever becomes of its connection
                self._within_deadline(opened.close)
            raise

    def _end(self) -> float:
        assert self._deadline is not None, "the fetch has begun"
        return self._deadline

    def _within_deadline(self, work: Callable[[], Any]) -> Any:
        """Work on a thread of its own, which is left behind where it is late."""
        return _readers.call(work, timeout_s=max(0.0, self._end() - time.monotonic()), key=self._key)

    def _open(self, stop: threading.Event) -> OpenObject:
        opener = find_opener(self._scheme)
        with quiet(self._scheme):
            opened = opener(self._url, self._end())
        if stop.is_set():
            opened.close()
        return opened

    def _body(self, opened: OpenObject, stop: threading.Event, held: Lease | None) -> bytes:
        """Read up to the limit; `held` is kept for as long as this runs, also after its caller timed out."""
        body = io.BytesIO()
        with quiet(self._scheme):
            try:
                self._copy(opened, body, stop)
            except Exception as error:
                if type(error).__name__ in _BROKEN:
                    raise broken_connection() from error
                raise
            finally:
                opened.close()
        if opened.size is not None and body.tell() < self._limits.part(opened.size):
            raise broken_connection()
        return body.getvalue()

    def _copy(self, opened: OpenObject, body: io.BytesIO, stop: threading.Event) -> None:
        most = self._limits.max_image_bytes
        end = self._limits.part(most + 1)
        while not stop.is_set() and (chunk := opened.read(min(_CHUNK, end - body.tell()))):
            body.write(chunk)
            if body.tell() > most:
                raise self._limits.too_large()


def _check_scheme(url: str, scheme: str, limits: FetchLimits) -> None:
    """Raise a RowError for a scheme that is not allowed, before anything is imported or requested."""
    allowed = (*SCHEMES, *limits.extra_schemes)
    if "::" in url:
        raise RowError("fetch", "URLs that are chained with '::' are not read. Give the URL of the image alone.")
    if scheme not in allowed:
        more = "" if limits.allow_private_hosts else " and allow_private_hosts=True"
        raise RowError(
            "fetch",
            f"{scheme}:// URLs are not read; allowed are {', '.join(allowed)}. Pass extra_schemes=[{scheme!r}]{more} "
            "if you trust them.",
        )
    if not limits.allow_private_hosts and scheme not in _BUCKETS:
        raise RowError(
            "fetch",
            f"allow_private_hosts=False blocks {scheme}:// URLs, because their host cannot be verified. "
            "Pass allow_private_hosts=True to allow them.",
        )


def _reason(scheme: str, error: Any) -> str:
    """Return the kind of failure only."""
    name = type(error).__name__
    if "credential" in name.lower():
        family = {"s3a": "s3", "gcs": "gs"}.get(scheme, scheme)
        return f"no credentials; set {_CREDENTIALS.get(family, 'those of the object storage')} in the environment"
    status = getattr(getattr(error, "response", None), "status_code", None)
    return _KNOWN.get(name) or _STATUSES.get(status) or safe_reason(error)


assert WITHOUT_LEASE >= _CHUNK, "the first chunk is read before memory is leased"
