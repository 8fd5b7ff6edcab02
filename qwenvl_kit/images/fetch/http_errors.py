"""Row errors for what urllib3 and http.client raise, without URLs and without what they quote of them."""

from __future__ import annotations

import http.client

import urllib3

from qwenvl_kit.errors import RowError, printable
from qwenvl_kit.images.fetch.limits import FetchLimits
from qwenvl_kit.images.fetch.retry import broken_connection
from qwenvl_kit.images.fetch.ssrf import BlockedAddressError, OutOfFilesError
from qwenvl_kit.images.source_context import safe_reason

MAX_QUOTED = 100
"""Characters quoted of a server's own words."""

_BROKEN = (
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.IncompleteRead,
    urllib3.exceptions.InvalidChunkLength,
    ConnectionError,
)
_TIMEOUTS = (urllib3.exceptions.TimeoutError, urllib3.exceptions.EmptyPoolError, TimeoutError)
_REASONS = {
    "SSLError": "the certificate or TLS set-up is not accepted",
    "LocationParseError": "the URL is not valid",
    "LocationValueError": "the URL is not valid",
}

TRANSPORT_ERRORS = (BlockedAddressError, OutOfFilesError, urllib3.exceptions.HTTPError, OSError, ValueError)
"""What sending a request and reading its response may raise, beside row errors."""


def row_error_of(error: BaseException, limits: FetchLimits) -> RowError:
    """Return the row error for one of `TRANSPORT_ERRORS`."""
    if isinstance(error, BlockedAddressError):
        return RowError("fetch", str(error))
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return RowError("fetch", "The host name cannot be resolved. Check its spelling.")
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # a kind of time-out to urllib3: first
        return RowError("fetch", _refusal(error))
    if isinstance(error, _TIMEOUTS):
        return limits.timeout_error()
    if isinstance(error, _BROKEN):
        malformed = _malformed(error)
        return RowError("fetch", malformed) if malformed else broken_connection()
    cause = (error.__cause__ or error) if isinstance(error, OutOfFilesError) else error
    return RowError("fetch", f"Cannot read the image: {_REASONS.get(type(cause).__name__) or safe_reason(cause)}.")


def _refusal(error: BaseException) -> str:
    cause = error.__cause__
    if cause is None or isinstance(cause, ConnectionRefusedError):
        return "The connection was refused. Check host and port."
    return f"The host cannot be reached: {safe_reason(cause)}."


def _malformed(error: BaseException) -> str | None:
    """Return what is wrong with a response that a retry would bring again; None for a broken connection."""
    cause = error.args[1] if len(error.args) > 1 else error.__cause__
    if isinstance(cause, http.client.LineTooLong):
        return "A header line of the response has more than 65536 characters, the limit of Python's http.client."
    if isinstance(cause, http.client.BadStatusLine) and not isinstance(cause, ConnectionError):
        return "The response is not HTTP. Check host and port."
    if isinstance(cause, http.client.UnknownProtocol):
        return "The response is not HTTP/1."
    if type(cause) is http.client.HTTPException:  # its texts: "got more than 100 headers", and ours
        return f"The response has {printable(str(cause), MAX_QUOTED).removeprefix('got ')}, the limit."
    return None
