"""A http or https address in, the bytes behind it out, within limits and a few redirects.

It never looks at a host itself: `qwenvl_kit.images.hosts` makes the connections, and refuses some.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

import urllib3

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.fetch import too_slow
from qwenvl_kit.images.hosts import HostRefused, pool
from qwenvl_kit.images.patience import Passing, host, passing
from qwenvl_kit.images.sources import mask

if TYPE_CHECKING:
    from qwenvl_kit.images.fetch import FetchLimits
    from qwenvl_kit.images.patience import Host

MAX_REDIRECTS = 5
_CHUNK = 1 << 16
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
    mark : str or None
        Its ETag or date, by which `is_unchanged` asks later.

    Raises
    ------
    RowError
        No answer of status 200 within the limits, or a host that is refused, of the stage ``fetch``.
    """
    hop = _follow(address, label, limits, {})
    return hop.body, hop.mark


def is_unchanged(address: str, label: str, mark: str, limits: FetchLimits) -> bool:
    """Ask an address whether what it gave under `mark` is still what it gives, without fetching it again.

    Raises
    ------
    RowError
        As `get`.
    """
    kind, _, value = mark.partition(":")
    condition = {"etag": "If-None-Match", "date": "If-Modified-Since"}.get(kind)
    return condition is not None and _follow(address, label, limits, {condition: value}).is_unchanged


def _follow(address: str, label: str, limits: FetchLimits, condition: dict[str, str]) -> _Hop:
    deadline = time.monotonic() + limits.timeout_s
    private_allowed = limits.allow_private_hosts
    for _ in range(MAX_REDIRECTS + 1):
        hop = _persist(_Ask(address, label, limits, deadline, condition), private_allowed=private_allowed)
        if hop.location is None:
            return hop
        address, private_allowed = _target(address, hop.location, label), hop.private
        if urlsplit(address).scheme not in ("http", "https"):
            raise RowError("fetch", f"{label} redirects to {mask(address)}; only http and https are followed")
    raise RowError("fetch", f"{label} redirects more than {MAX_REDIRECTS} times")


def _target(address: str, location: str, label: str) -> str:
    try:
        return urljoin(address, location)
    except ValueError as error:
        raise RowError("fetch", f"{label} redirects to what is no valid address") from error


@dataclass(frozen=True, slots=True)
class _Ask:
    """One request: where, under what name and limits, until when, and under what condition."""

    address: str
    label: str
    limits: FetchLimits
    deadline: float
    condition: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Hop:
    """One answer: the body, or where it points; `private` tells which kind of host gave it."""

    private: bool
    body: bytes = b""
    mark: str | None = None
    location: str | None = None
    is_unchanged: bool = False


def _persist(ask: _Ask, *, private_allowed: bool) -> _Hop:
    """Ask, and ask again where a fault may pass."""
    asked, n_retries = _host(ask.address), 0
    while True:
        asked.wait(ask.deadline)
        try:
            hop = _hop(ask, private_allowed=private_allowed)
        except Passing as fault:
            if not asked.rest(fault, n_retries, ask.deadline):
                tried = f" (asked {n_retries + 1} times)" if n_retries else ""
                raise RowError("fetch", f"{fault.message}{tried}") from fault
            n_retries += 1
        else:
            asked.answered()
            return hop


def _host(address: str) -> Host:
    try:
        parts = urlsplit(address)
    except ValueError:  # asking will tell that it is no address
        return host("", "")
    return host(parts.scheme, parts.netloc.rpartition("@")[2].lower())


def _hop(ask: _Ask, *, private_allowed: bool) -> _Hop:
    label = ask.label
    try:
        try:
            return _send(ask, private=False)
        except HostRefused as refused:
            if not (refused.private and private_allowed):
                raise
            return _send(ask, private=True)
    except HostRefused as refused:
        raise RowError("fetch", f"{label}: {refused}") from refused
    except urllib3.exceptions.NameResolutionError as error:
        raise RowError("fetch", f"{label}: the host name cannot be resolved") from error
    except urllib3.exceptions.NewConnectionError as error:  # a kind of time-out to urllib3, so it must come first
        raise RowError("fetch", f"{label}: the connection was refused") from error
    except (urllib3.exceptions.TimeoutError, urllib3.exceptions.EmptyPoolError) as error:
        raise too_slow(label, ask.limits) from error
    except (*_BROKEN_OFF, ConnectionError) as error:
        raise Passing("fetch", f"{label} cannot be read: {_reason(error)}") from error
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise RowError("fetch", f"{label} cannot be read: {_reason(error)}") from error


def _send(ask: _Ask, *, private: bool) -> _Hop:
    left = ask.deadline - time.monotonic()
    if left <= 0:
        raise too_slow(ask.label, ask.limits)
    response = pool(private).request(
        "GET",
        ask.address,
        headers={**_HEADERS, **_login(ask.address), **ask.condition},
        preload_content=False,
        redirect=False,
        retries=False,
        timeout=urllib3.Timeout(total=left),
        pool_timeout=left,  # a host's connections are limited, and its turn may come too late
    )
    try:
        return _read(response, ask, private=private)
    except BaseException:
        response.close()  # a half-read connection must not go back to the pool
        raise
    finally:
        response.release_conn()


def _read(response: Any, ask: _Ask, *, private: bool) -> _Hop:
    if location := response.get_redirect_location():
        if response.length_remaining != 0:
            response.close()  # its page is not read, and would stand before the next answer
        return _Hop(private, location=location)
    if response.status == 304 and ask.condition:
        return _Hop(private, is_unchanged=True)
    if response.status != 200:
        raise passing(f"{ask.label} answered with status {response.status} {response.reason or ''}".rstrip(), response)
    if ask.condition:  # it has changed, and will be fetched in its turn
        response.close()
        return _Hop(private)
    return _Hop(private, body=_body(response, ask.label, ask.limits, ask.deadline), mark=_mark(response.headers))


def _mark(headers: Any) -> str | None:
    """Name what an answer held: by its ETag, else by its date."""
    for kind, name in (("etag", "ETag"), ("date", "Last-Modified")):
        if value := headers.get(name):
            return f"{kind}:{value}"
    return None


def _body(response: Any, label: str, limits: FetchLimits, deadline: float) -> bytes:
    """Read what comes, as it comes, so that a server that drips one byte a second meets the deadline."""
    body = bytearray()
    while chunk := response.read1(_CHUNK):
        body += chunk
        if len(body) > limits.max_image_bytes:
            raise RowError(
                "fetch",
                f"{label} has more than max_image_bytes={limits.max_image_bytes} bytes; raise it if you trust it",
            )
        if time.monotonic() > deadline:
            raise too_slow(label, limits)
    return bytes(body)


def _login(address: str) -> dict[str, str]:
    """The header that a user name and password in an address stand for; urllib3 would leave them out in silence."""
    user = urllib3.util.parse_url(address).auth
    return urllib3.make_headers(basic_auth=unquote(user)) if user else {}


def _reason(error: Exception) -> str:
    """Say what happened without the library's message, which repeats the whole address."""
    if isinstance(error, (*_BROKEN_OFF, ConnectionError)):
        return "the connection broke off"
    known = {
        "SSLError": "the certificate or TLS set-up is not accepted",
        "LocationParseError": "it is no valid address",
        "LocationValueError": "it is no valid address",
    }
    return known.get(type(error).__name__, type(error).__name__)
