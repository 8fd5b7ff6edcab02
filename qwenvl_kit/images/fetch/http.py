"""GET requests over HTTP and HTTPS, with limits, redirects and retries.

`qwenvl_kit.images.fetch.ssrf` makes the connections, and blocks those to forbidden addresses.
"""

from __future__ import annotations

import io
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

import urllib3

from qwenvl_kit.errors import RowError, printable
from qwenvl_kit.images.fetch.connections import extend_deadline, pool
from qwenvl_kit.images.fetch.cookies import CookieJar
from qwenvl_kit.images.fetch.fetched import WITHOUT_LEASE, Fetched, RetryAt, lease
from qwenvl_kit.images.fetch.http_errors import MAX_QUOTED, TRANSPORT_ERRORS, row_error_of
from qwenvl_kit.images.fetch.logs import quiet
from qwenvl_kit.images.fetch.retry import TransientError, host_retry_state, status_error
from qwenvl_kit.images.fetch.ssrf import BlockedAddressError, one_lookup
from qwenvl_kit.images.urls import host_key, redact_url

if TYPE_CHECKING:
    from qwenvl_kit.images.budget import Lease
    from qwenvl_kit.images.fetch.limits import FetchLimits

MAX_REDIRECTS = 5
_CHUNK = 1 << 16
_HEADERS = {"User-Agent": "qwenvl_kit", "Accept": "image/*,*/*;q=0.5"}
_WHOLE_RANGE = re.compile(r"bytes 0-(\d{1,18})/(\d{1,18})")


def is_unchanged(url: str, version: str, limits: FetchLimits) -> bool:
    """Return whether a URL still has the version of an earlier response, by one conditional request.

    Raises
    ------
    RowError, RetryAt
        As `HttpGet.try_once`.
    """
    kind, _, value = version.partition(":")
    condition = {"etag": "If-None-Match", "date": "If-Modified-Since"}.get(kind)
    return condition is not None and HttpGet(url, limits, {condition: value}).is_not_modified()


class HttpGet:
    """One GET request, with its redirects and retries; a public host cannot redirect to a private one.

    Parameters
    ----------
    url : str
        http or https.
    limits : FetchLimits
        Time over all redirects, bytes, and whether private networks are allowed.
    condition : dict of str, optional
        Headers of a conditional request, to which the server may respond 304 Not Modified.
    """

    def __init__(self, url: str, limits: FetchLimits, condition: dict[str, str] | None = None) -> None:
        self._url, self._limits, self._condition = url, limits, condition or {}
        self._origin = host_key(url)  # the only host that gets the caller's headers
        self._private_allowed = limits.allow_private_hosts
        self._cookies = CookieJar()
        self._deadline: float | None = None
        self._n_redirects = self._n_retries = 0

    def try_once(self) -> Fetched:
        """Return the body, or raise the time of the next try.

        Raises
        ------
        RetryAt
            The host backs off, or the fault is transient.
        RowError
            No success within the limits, of the stage ``fetch``.
        """
        response = self._follow_redirects()
        return Fetched(response.body, response.version, response.lease)

    def is_not_modified(self) -> bool:
        """Return whether the server responds 304 Not Modified; raises as `try_once`."""
        return self._follow_redirects().is_not_modified

    def _follow_redirects(self) -> _Response:
        while True:
            response = self._send_with_retries()
            if response.location is None:
                return response
            self._redirect(response)

    def _send_with_retries(self) -> _Response:
        state = host_retry_state(host_key(self._url))
        deadline = self._start_clock(state.backoff_until)
        try:
            response = self._request()
        except TransientError as fault:
            outcome = state.retry_or_fail(fault, self._n_retries, deadline)
            self._n_retries += 1
            raise outcome from fault
        state.record_success()
        return response

    def _left_until(self) -> float:
        assert self._deadline is not None, "a request was sent"
        return self._deadline

    def _start_clock(self, backoff_until: float) -> float:
        """Return the deadline, which counts from the first request; send none while the host backs off."""
        now = time.monotonic()
        deadline = now + self._limits.timeout_s if self._deadline is None else self._deadline
        if now < backoff_until < deadline:
            raise RetryAt(backoff_until)
        if backoff_until > now:
            raise RowError(
                "fetch",
                f"The server allows the next request in {backoff_until - now:.0f} s (Retry-After), beyond "
                f"timeout_s={self._limits.timeout_s:g}. Raise it, or try again later.",
            )
        self._deadline = deadline
        return deadline

    def _redirect(self, response: _Response) -> None:
        assert response.location is not None
        if self._n_redirects == MAX_REDIRECTS:
            raise RowError("fetch", f"The URL redirects more than {MAX_REDIRECTS} times. Give its final URL.")
        self._url = _redirect_target(self._url, response.location)
        self._private_allowed = response.private
        self._n_redirects, self._n_retries = self._n_redirects + 1, 0

    def _request(self) -> _Response:
        try:
            with quiet(), one_lookup():
                try:
                    return self._send(private=False)
                except BlockedAddressError as blocked:
                    if not (blocked.private and self._private_allowed):
                        raise
                    return self._send(private=True)
        except TRANSPORT_ERRORS as error:
            raise row_error_of(error, self._limits) from error

    def _send(self, *, private: bool) -> _Response:
        left = self._left_until() - time.monotonic()
        if left <= 0:
            raise self._limits.timeout_error()
        raw = pool(private).request(
            "GET",
            self._url,
            headers=self._headers(),
            preload_content=False,
            redirect=False,
            retries=False,
            timeout=urllib3.Timeout(total=left),
            pool_timeout=left,  # a host's connections are limited, and one may be free too late
        )
        try:
            return self._read(raw, private=private)
        except BaseException:
            raw.close()  # a half-read connection must not go back to the pool
            raise
        finally:
            raw.release_conn()

    def _headers(self) -> dict[str, str]:
        """Return our headers, the URL's login, and the caller's headers, the last of which win."""
        headers = {**_HEADERS, **_login(self._url)}
        if host_key(self._url) == self._origin:
            ours = {name.lower(): name for name in headers}
            for name, value in self._limits.headers:
                headers.pop(ours.get(name.lower(), ""), None)
                headers[name] = value
        if cookies := self._cookies.header(self._url):
            given = next((name for name in headers if name.lower() == "cookie"), "Cookie")
            headers[given] = f"{headers[given]}; {cookies}" if given in headers else cookies
        if self._limits.head_bytes is not None:
            headers["Range"] = f"bytes=0-{self._limits.head_bytes - 1}"
        return {**headers, **self._condition}

    def _read(self, raw: Any, *, private: bool) -> _Response:
        self._cookies.add(self._url, raw.headers.getlist("Set-Cookie"))
        if location := raw.get_redirect_location():
            if raw.length_remaining != 0:
                raw.close()  # its page is not read, and would stand before the next response
            return _Response(private, location=_utf8(location))
        if raw.status == 304 and self._condition:
            return _Response(private, is_not_modified=True)
        if not (_is_whole(raw) or self._is_head(raw)):
            words = printable(raw.reason or "", MAX_QUOTED)
            raise status_error(f"HTTP status {raw.status} {words}".rstrip() + ".", raw)
        if self._condition:  # it has changed, and will be fetched in its turn
            raw.close()
            return _Response(private)
        body, held = self._body(raw)
        if not body and raw.status != 200:
            raise RowError("fetch", f"HTTP status {raw.status} without a body.")
        return _Response(private, body=body, lease=held, version=_version(raw.headers))

    def _is_head(self, raw: Any) -> bool:
        """Return whether a response has the first bytes that were asked for, of a file that is not too large."""
        found = _WHOLE_RANGE.fullmatch(raw.headers.get("Content-Range", ""))
        if self._limits.head_bytes is None or raw.status != 206 or found is None:
            return False
        self._limits.check_bytes(int(found[2]))
        return True

    def _body(self, raw: Any) -> tuple[bytes, Lease | None]:
        """Read each chunk as it arrives, so that a server that sends one byte a second meets the deadline."""
        announced = None if raw.headers.get("Content-Encoding") else raw.length_remaining
        if announced is not None:
            self._limits.check_bytes(announced)
        body, held, n_bytes = io.BytesIO(), None, 0
        end = self._limits.part(self._limits.max_image_bytes + 1)
        try:
            while n_bytes < end and (chunk := raw.read1(min(_CHUNK, end - n_bytes))):
                n_bytes += len(chunk)
                if n_bytes > self._limits.max_image_bytes:
                    raise self._limits.too_large()
                if held is None and n_bytes > WITHOUT_LEASE:
                    held, waited_s = lease(announced or self._limits.max_image_bytes)
                    self._deadline = self._left_until() + waited_s
                    extend_deadline(raw, waited_s)
                body.write(chunk)
                if time.monotonic() > self._left_until():
                    raise self._limits.timeout_error()
            if n_bytes >= end and raw.length_remaining != 0:  # the server ignored the range, and sends on
                raw.close()
        except BaseException:
            if held is not None:
                held.release()  # the error's traceback would hold it
            raise
        return body.getvalue(), held  # which copies nothing


@dataclass(frozen=True, slots=True)
class _Response:
    """A body, or the target of a redirect; `private` is True for a host of a private network."""

    private: bool
    body: bytes = b""
    version: str | None = None
    lease: Lease | None = None
    location: str | None = None
    is_not_modified: bool = False


def _redirect_target(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        scheme = urlsplit(target).scheme
    except ValueError as error:
        raise RowError("fetch", "The URL redirects to an invalid URL. Give its final URL.") from error
    if scheme not in ("http", "https"):
        raise RowError(
            "fetch", f"The URL redirects to {redact_url(target)}. Redirects are followed to http and https only."
        )
    if scheme == "http" and urlsplit(url).scheme == "https":
        raise RowError(
            "fetch",
            f"The URL redirects from https to {redact_url(target)}. This is not followed, since anyone on the network "
            "path could change the image. Give the http:// URL itself to allow it.",
        )
    return target


def _is_whole(raw: Any) -> bool:
    """Return whether a response has the whole content: 200, 203 of a proxy, and the like."""
    if raw.status == 206:  # no range was requested, but the range may be all
        found = _WHOLE_RANGE.fullmatch(raw.headers.get("Content-Range", ""))
        return found is not None and int(found[1]) + 1 == int(found[2])
    return 200 <= raw.status < 300 and raw.status not in (204, 205)


def _utf8(location: str) -> str:
    """Return a Location as its server meant it: http.client reads the bytes of UTF-8 as Latin-1."""
    try:
        return location.encode("latin-1").decode()
    except UnicodeError:
        return location


def _version(headers: Any) -> str | None:
    """Return the ETag of a response, else its date."""
    for kind, name in (("etag", "ETag"), ("date", "Last-Modified")):
        if value := headers.get(name):
            return f"{kind}:{value}"
    return None


def _login(url: str) -> dict[str, str]:
    """Return the header for the user name and password of a URL; urllib3 would leave them out."""
    user = urllib3.util.parse_url(url).auth
    return {"Authorization": urllib3.make_headers(basic_auth=unquote(user))["authorization"]} if user else {}
