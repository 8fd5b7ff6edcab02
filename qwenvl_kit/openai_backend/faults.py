"""Faults of a server: which are tried again, and the messages of the others."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import urllib3

from qwenvl_kit.errors import RowError
from qwenvl_kit.images.fetch.retry import retry_after_s

if TYPE_CHECKING:
    from qwenvl_kit.openai_backend.server import Server

TRANSPORT_ERRORS = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError)
"""What sending a request and reading its response may raise."""

_TLS_ENDS = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
_BUSY = frozenset({408, 425, 429, 502, 503, 504, 529})
_MAX_LOSSES = 8  # a server that restarts twenty times loses a row once or twice; a row that kills its server ends here
_MAX_FAILURES = 3


@dataclass(eq=False)
class Transient(Exception):
    """A fault that a later try may not meet.

    Attributes
    ----------
    message : str
        What went wrong.
    max_tries : int or None
        Tries that a row has after such faults; None where only its time counts.
    wait_s : float
        Seconds of the server's Retry-After header.
    is_unreachable : bool
        No connection was made.
    """

    message: str
    max_tries: int | None = None
    wait_s: float = 0.0
    is_unreachable: bool = False


class StatusError(RowError):
    """A response without success.

    Attributes
    ----------
    status : int
        Of HTTP.
    words : str
        The server's own message.
    parameter : str or None
        The parameter that it names as the cause.
    """

    status: int = 0
    words: str = ""
    parameter: str | None = None


class CertificateError(RowError):
    """The certificate of a server is not accepted, or it does not speak TLS."""


class RedirectError(RowError):
    """The server redirects; the request and its key do not follow."""


class NotOpenAIError(RowError):
    """A response that is not of the protocol."""


def transport_error(error: BaseException, server: Server) -> Exception:
    """Return the row error, or the transient fault, for one of `TRANSPORT_ERRORS`."""
    causes = _chain(error)
    reason = server.quote(_reason(causes), 200)
    if any(isinstance(one, ssl.SSLCertVerificationError | ssl.CertificateError) for one in causes):
        return CertificateError(
            "generate",
            f"The certificate of {server.base_url} is not accepted ({reason}). Use the name that the certificate is "
            "for, or let the environment variable SSL_CERT_FILE name a file with its authority.",
        )
    if isinstance(error, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError):
        return Transient(f"No server answers at {server.base_url} ({reason}).", is_unreachable=True)
    if any(isinstance(one, ssl.SSLError) and not isinstance(one, _TLS_ENDS) for one in causes):
        return CertificateError(
            "generate",
            f"No TLS connection to {server.base_url} ({reason}). For a server without TLS, base_url begins with http://.",
        )
    if any(isinstance(one, http.client.BadStatusLine) and not isinstance(one, ConnectionError) for one in causes):
        return NotOpenAIError("generate", f"{server.base_url} does not speak HTTP. Check host, port and scheme.")
    return Transient(f"The connection to {server.base_url} broke off ({reason}).", max_tries=_MAX_LOSSES)


def status_error(response: Any, body: bytes, server: Server) -> Exception:
    """Return the row error, or the transient fault, of a response without success."""
    words, parameter, code = _details(body)
    said = f": {server.quote(words)}" if words else ""
    if 300 <= response.status < 400:
        return _redirect_error(response, server)
    message = f"The server answered with HTTP status {response.status}{said}"
    is_final = code == "insufficient_quota"
    if response.status in _BUSY and not is_final:
        return Transient(f"{message}.", wait_s=retry_after_s(response) or 0.0)
    if response.status >= 500 and not is_final:
        return Transient(f"{message}.", max_tries=_MAX_FAILURES)
    fault = StatusError("generate", f"{message.removesuffix('.')}.")
    fault.status, fault.words, fault.parameter = response.status, server.quote(words), parameter
    return fault


def reported_error(error: object, server: Server) -> Exception:
    """Return the fault that a server reports within an answer."""
    words, _, code = _details(json.dumps({"error": error}).encode())
    message = f"The server reports an error: {server.quote(words or str(error))}"
    status = int(code) if code.isdigit() else 0
    if status in _BUSY:
        return Transient(message)
    return Transient(message, max_tries=_MAX_FAILURES) if status >= 500 else RowError("generate", message)


def _redirect_error(response: Any, server: Server) -> RedirectError:
    target = urlsplit(urljoin(f"{server.base_url}/", response.headers.get("Location", "")))
    where = server.quote(f"{target.scheme}://{target.hostname}" + (f":{target.port}" if target.port else ""), 200)
    return RedirectError(
        "generate",
        f"{server.base_url} redirects to {where}, which neither the request nor the key follow. If it is the right "
        "server, pass its URL as base_url.",
    )


def _details(body: bytes) -> tuple[str, str | None, str]:
    """Return message, parameter and code of an error's body, in any of the known forms."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return "", None, ""
    error = content.get("error", content) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return str(error), None, ""
    detail = error.get("message", error.get("detail"))
    parameter = error.get("param")
    if isinstance(detail, list) and detail and isinstance(detail[0], dict):  # of FastAPI
        place = detail[0].get("loc") or [None]
        parameter = place[-1] if isinstance(place, list) else None
        detail = f"{parameter}: {detail[0].get('msg')}"
    code = error.get("code")
    words = "" if detail is None else str(detail)
    return words, parameter if isinstance(parameter, str) else None, "" if code is None else str(code)


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in found:
        found.append(following)
        inner = next((one for one in following.args if isinstance(one, BaseException)), None)
        following = following.__cause__ or inner or following.__context__
    return found


def _reason(causes: list[BaseException]) -> str:
    """Return the innermost cause in words, without the objects that urllib3 quotes."""
    last = causes[-1]
    words = last.strerror if isinstance(last, OSError) and last.strerror else ""
    if isinstance(last, ssl.SSLCertVerificationError):
        words = last.verify_message
    return words or type(last).__name__
