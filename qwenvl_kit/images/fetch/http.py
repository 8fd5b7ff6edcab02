"""GET requests to http and https addresses, within limits and a few redirects.

It never looks at a host itself: `qwenvl_kit.images.fetch.ssrf` makes the connections, and refuses some.
"""

from __future__ import annotations

import email.utils
import http.client
import io
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import urllib3

from qwenvl_kit.errors import RowError, printable
from qwenvl_kit.images.classify import redact_url
from qwenvl_kit.images.fetch.dispatch import (
    WITHOUT_LEASE,
    Fetched,
    RetryAt,
    host_key,
    lease,
    reason,
    sleep_until,
    timeout_error,
    too_large,
)
from qwenvl_kit.images.fetch.logs import quiet
from qwenvl_kit.images.fetch.retry import TransientError, host_retry_state, status_error
from qwenvl_kit.images.fetch.ssrf import BlockedAddressError, OutOfFiles, extend, one_lookup, pool

if TYPE_CHECKING:
    from qwenvl_kit.images.budget import Lease
    from qwenvl_kit.images.fetch.dispatch import FetchLimits

MAX_REDIRECTS = 5
_CHUNK = 1 << 16
_LONGEST_REASON = 100  # characters of a server's own words
_MAX_COOKIES, _LONGEST_COOKIE = 20, 4096
_COOKIE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+=[ -:<-~]*")  # https://www.rfc-editor.org/rfc/rfc6265#section-4.1.1
_BROKEN_OFF = (
    urllib3.exceptions.ProtocolError,
    urllib3.exceptions.IncompleteRead,
    urllib3.exceptions.InvalidChunkLength,
)
_HEADERS = {"User-Agent": "qwenvl_kit", "Accept": "image/*,*/*;q=0.5"}


def get(address: str, label: str, limits: FetchLimits) -> tuple[bytes, str | None]:
    """Fetch an address, following at most 5 redirects; a public host may not send us to a private one.

    Parameters
    ----------
    address : str
        http or https.
    label : str
        Its name for messages, free of secrets.
    limits : FetchLimits
        Time over all redirects, bytes, and whether private networks are allowed.

    Returns
    -------
    body : bytes
        What is behind the address.
    version : str or None
        Its ETag or date, by which `is_unchanged` asks later.

    Raises
    ------
    RowError
        No successful answer within the limits, or a host that is refused, of the stage ``fetch``.
    """
    request = HttpGet(address, label, limits)
    while True:
        try:
            fetched = request.try_once()
        except RetryAt as later:
            sleep_until(later.at)
        else:
            fetched.release()
            return fetched.data, fetched.version


def is_unchanged(address: str, label: str, version: str, limits: FetchLimits) -> bool:
    """Ask an address once whether what it gave at `version` is still what it gives, without fetching it again.

    Raises
    ------
    RowError, RetryAt
        As `HttpGet.try_once`.
    """
    kind, _, value = version.partition(":")
    condition = {"etag": "If-None-Match", "date": "If-Modified-Since"}.get(kind)
    if condition is None:
        return False
    return HttpGet(address, label, limits, {condition: value}).ask().is_unchanged


class HttpGet:
    """One GET request under way, over its redirects and retries.

    Parameters
    ----------
    address, label, limits
        As for `get`.
    condition : dict of str
        Headers under which the server may answer that nothing has changed.
    """

    def __init__(self, address: str, label: str, limits: FetchLimits, condition: dict[str, str] | None = None) -> None:
        self._address, self._label, self._limits = address, label, limits
        self._condition = condition or {}
        self._origin = host_key(address)  # the caller's headers go nowhere else
        self._private_allowed = limits.allow_private_hosts
        self._cookies = _Cookies()
        self._deadline: float | None = None
        self._n_redirects = self._n_retries = 0

    def try_once(self) -> Fetched:
        """Send requests until the answer is there, or must be waited for.

        Raises
        ------
        RetryAt
            The host rests, or a fault may have passed by then.
        RowError
            It cannot be had within the limits, of the stage ``fetch``.
        """
        response = self.ask()
        return Fetched(response.body, response.version, response.lease)

    def ask(self) -> _Response:
        """Do as `try_once`, and return the last answer itself."""
        while True:
            state = host_retry_state(host_key(self._address))
            self._begin(state.backoff_until)
            try:
                response = self._request()
            except TransientError as fault:
                at = state.retry_at(fault, self._n_retries, self._left_until())
                if at is None:
                    tried = f" (asked {self._n_retries + 1} times)" if self._n_retries else ""
                    raise RowError("fetch", f"{fault.message}{tried}") from fault
                self._n_retries += 1
                raise RetryAt(at) from fault
            state.record_success()
            if response.location is None:
                return response
            self._redirect(response)

    def _left_until(self) -> float:
        assert self._deadline is not None, "a request was sent"
        return self._deadline

    def _begin(self, backoff_until: float) -> None:
        """Start the clock with the first request, and send none while the host rests."""
        now = time.monotonic()
        deadline = now + self._limits.timeout_s if self._deadline is None else self._deadline
        if backoff_until > now:
            if backoff_until < deadline:
                raise RetryAt(backoff_until)
            raise RowError(
                "fetch",
                f"{self._label}: the server asked for a pause of {backoff_until - now:.0f} s more (Retry-After), which "
                f"timeout_s={self._limits.timeout_s:g} does not allow; raise it, or ask again later",
            )
        self._deadline = deadline

    def _redirect(self, response: _Response) -> None:
        assert response.location is not None
        if self._n_redirects == MAX_REDIRECTS:
            raise RowError("fetch", f"{self._label} redirects more than {MAX_REDIRECTS} times")
        try:
            target = urljoin(self._address, response.location)
            scheme = urlsplit(target).scheme
        except ValueError as error:
            raise RowError("fetch", f"{self._label} redirects to what is no valid address") from error
        if scheme not in ("http", "https"):
            raise RowError(
                "fetch", f"{self._label} redirects to {redact_url(target)}; only http and https are followed"
            )
        if scheme == "http" and urlsplit(self._address).scheme == "https":
            raise RowError(
                "fetch",
                f"{self._label} redirects from https to {redact_url(target)}, which is not followed, since anyone "
                "on the way could change the picture; give the http:// address itself if that is meant",
            )
        self._address, self._private_allowed = target, response.private
        self._n_redirects, self._n_retries = self._n_redirects + 1, 0

    def _request(self) -> _Response:
        label = self._label
        try:
            with quiet(), one_lookup():
                try:
                    return self._send(private=False)
                except BlockedAddressError as refused:
                    if not (refused.private and self._private_allowed):
                        raise
                    return self._send(private=True)
        except BlockedAddressError as refused:
            raise RowError("fetch", f"{label}: {refused}") from refused
        except OutOfFiles as error:
            raise RowError("fetch", f"{label} cannot be read: {reason(error.__cause__ or error)}") from error
        except urllib3.exceptions.NameResolutionError as error:
            raise RowError("fetch", f"{label}: the host name cannot be resolved") from error
        except urllib3.exceptions.NewConnectionError as error:  # a kind of time-out to urllib3, so it must come first
            raise RowError("fetch", f"{label}: {_refusal(error)}") from error
        except (urllib3.exceptions.TimeoutError, urllib3.exceptions.EmptyPoolError, TimeoutError) as error:
            raise timeout_error(label, self._limits) from error
        except (*_BROKEN_OFF, ConnectionError) as error:
            if what := _malformed(error):
                raise RowError("fetch", f"{label} cannot be read: {what}") from error
            raise TransientError("fetch", f"{label} cannot be read: the connection broke off") from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise RowError("fetch", f"{label} cannot be read: {_reason(error)}") from error

    def _send(self, *, private: bool) -> _Response:
        left = self._left_until() - time.monotonic()
        if left <= 0:
            raise timeout_error(self._label, self._limits)
        response = pool(private).request(
            "GET",
            self._address,
            headers=self._headers(),
            preload_content=False,
            redirect=False,
            retries=False,
            timeout=urllib3.Timeout(total=left),
            pool_timeout=left,  # a host's connections are limited, and its turn may come too late
        )
        try:
            return self._read(response, private=private)
        except BaseException:
            response.close()  # a half-read connection must not go back to the pool
            raise
        finally:
            response.release_conn()

    def _headers(self) -> dict[str, str]:
        """Return our headers, the address's login, and the caller's headers, the last of which win."""
        headers = {**_HEADERS, **_login(self._address)}
        if host_key(self._address) == self._origin:
            ours = {name.lower(): name for name in headers}
            for name, value in self._limits.headers:
                headers.pop(ours.get(name.lower(), ""), None)
                headers[name] = value
        if cookies := self._cookies.header(self._address):
            given = next((name for name in headers if name.lower() == "cookie"), "Cookie")
            headers[given] = f"{headers[given]}; {cookies}" if given in headers else cookies
        return {**headers, **self._condition}

    def _read(self, response: Any, *, private: bool) -> _Response:
        label = self._label
        self._cookies.add(self._address, response.headers.getlist("Set-Cookie"))
        if location := response.get_redirect_location():
            if response.length_remaining != 0:
                response.close()  # its page is not read, and would stand before the next answer
            return _Response(private, location=_decoded(location))
        if response.status == 304 and self._condition:
            return _Response(private, is_unchanged=True)
        if not _is_whole(response):
            words = printable(response.reason or "", _LONGEST_REASON)
            raise status_error(f"{label} answered with status {response.status} {words}".rstrip(), response)
        if self._condition:  # it has changed, and will be fetched in its turn
            response.close()
            return _Response(private)
        body, held = self._body(response)
        if not body and response.status != 200:
            raise RowError("fetch", f"{label} answered with status {response.status} and without a body")
        return _Response(private, body=body, lease=held, version=_version(response.headers))

    def _body(self, response: Any) -> tuple[bytes, Lease | None]:
        """Read what comes, as it comes, so that a server that drips one byte a second meets the deadline."""
        announced = None if response.headers.get("Content-Encoding") else response.length_remaining
        if announced is not None and announced > self._limits.max_image_bytes:
            raise too_large(self._label, announced, self._limits)
        body, held, n_bytes = io.BytesIO(), None, 0
        try:
            while chunk := response.read1(_CHUNK):
                n_bytes += len(chunk)
                if n_bytes > self._limits.max_image_bytes:
                    raise too_large(self._label, None, self._limits)
                if held is None and n_bytes > WITHOUT_LEASE:
                    held, waited_s = lease(announced or self._limits.max_image_bytes, self._label)
                    self._deadline = self._left_until() + waited_s
                    extend(response, waited_s)
                body.write(chunk)
                if time.monotonic() > self._left_until():
                    raise timeout_error(self._label, self._limits)
        except BaseException:
            if held is not None:
                held.release()  # the error's traceback would hold it
            raise
        return body.getvalue(), held  # which copies nothing


@dataclass(frozen=True, slots=True)
class _Response:
    """One answer: the body, or where it points; `private` tells which kind of host gave it."""

    private: bool
    body: bytes = b""
    version: str | None = None
    lease: Lease | None = None
    location: str | None = None
    is_unchanged: bool = False


class _Cookies:
    """Cookies of one fetch, which some servers want back with the request that follows a redirect.

    A cookie goes to the very host that set it, never to its subdomains or its parents.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, str], tuple[str, bool]] = {}  # host, path, name: pair, whether it is secure

    def add(self, address: str, fields: list[str]) -> None:
        parts = urlsplit(address)
        for text in fields:
            pair, *attributes = (part.strip() for part in text.split(";"))
            if len(text) > _LONGEST_COOKIE or not _COOKIE.fullmatch(pair):
                continue
            self._set(parts, pair, dict(_attribute(part) for part in attributes))

    def header(self, address: str) -> str:
        """Return what to send to an address, empty for nothing."""
        if not self._kept:
            return ""
        parts = urlsplit(address)
        path = parts.path or "/"
        return "; ".join(
            pair
            for (name, where, _), (pair, is_secure) in self._kept.items()
            if name == parts.hostname and (parts.scheme == "https" or not is_secure) and _is_below(path, where)
        )

    def _set(self, parts: SplitResult, pair: str, attributes: dict[str, str]) -> None:
        name, own = pair.partition("=")[0], parts.hostname or ""
        domain = attributes.get("domain", "").removeprefix(".").lower()
        is_secure = "secure" in attributes
        if (domain and own != domain and not own.endswith(f".{domain}")) or (is_secure and parts.scheme != "https"):
            return
        path = attributes.get("path", "")
        if not path.startswith("/"):
            path = (parts.path or "/").rpartition("/")[0] or "/"
        key = (own, path, name)
        self._kept.pop(key, None)
        if not _is_over(attributes) and len(self._kept) < _MAX_COOKIES:
            self._kept[key] = pair, is_secure


def _attribute(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip().lower(), value.strip()


def _is_below(path: str, where: str) -> bool:
    return path == where or path.startswith(where if where.endswith("/") else f"{where}/")


def _is_over(attributes: dict[str, str]) -> bool:
    age = attributes.get("max-age")
    if age is not None:
        return age.startswith("-") or not age.strip("0")
    try:
        until = email.utils.parsedate_tz(attributes.get("expires", ""))
        return until is not None and email.utils.mktime_tz(until) <= time.time()
    except (TypeError, ValueError, OverflowError):  # a date that is none
        return False


def _is_whole(response: Any) -> bool:
    """Return whether an answer holds the whole of what was asked for: 200, 203 of a proxy, and the like."""
    if response.status == 206:  # nobody asked for a part, but the part may be all
        found = re.fullmatch(r"bytes 0-(\d{1,18})/(\d{1,18})", response.headers.get("Content-Range", ""))
        return found is not None and int(found[1]) + 1 == int(found[2])
    return 200 <= response.status < 300 and response.status not in (204, 205)


def _decoded(location: str) -> str:
    """Return a Location as its server meant it: http.client reads the bytes of UTF-8 as Latin-1."""
    try:
        return location.encode("latin-1").decode()
    except UnicodeError:
        return location


def _version(headers: Any) -> str | None:
    """Name what an answer held: by its ETag, else by its date."""
    for kind, name in (("etag", "ETag"), ("date", "Last-Modified")):
        if value := headers.get(name):
            return f"{kind}:{value}"
    return None


def _login(address: str) -> dict[str, str]:
    """Return the header that a user name and password in an address stand for; urllib3 would leave them out."""
    user = urllib3.util.parse_url(address).auth
    return {"Authorization": urllib3.make_headers(basic_auth=unquote(user))["authorization"]} if user else {}


def _refusal(error: Exception) -> str:
    cause = error.__cause__
    if cause is None or isinstance(cause, ConnectionRefusedError):
        return "the connection was refused"
    return f"the host cannot be reached ({reason(cause)})"


def _malformed(error: Exception) -> str | None:
    """Return what is wrong with an answer that asking again would bring again; None where the connection broke off."""
    cause = error.args[1] if len(error.args) > 1 else error.__cause__
    if isinstance(cause, http.client.LineTooLong):
        return "a line of the answer's head has more than 65536 characters, the most that Python's http.client reads"
    if isinstance(cause, http.client.BadStatusLine) and not isinstance(cause, ConnectionError):
        return "the answer is not HTTP"
    if isinstance(cause, http.client.UnknownProtocol):
        return "the answer is not HTTP/1"
    if type(cause) is http.client.HTTPException:  # its texts: "got more than 100 headers", and ours
        return f"{printable(str(cause), _LONGEST_REASON)}, the most that is read".replace("got ", "the answer has ")
    return None


def _reason(error: Exception) -> str:
    """Say what happened without the library's message, which repeats the whole address."""
    known = {
        "SSLError": "the certificate or TLS set-up is not accepted",
        "LocationParseError": "it is no valid address",
        "LocationValueError": "it is no valid address",
    }
    return known.get(type(error).__name__) or reason(error)
