"""Keep the cookies of one fetch, which some servers expect back after a redirect."""

from __future__ import annotations

import email.utils
import re
import time
from urllib.parse import SplitResult, urlsplit

_MAX_COOKIES, _MAX_LENGTH = 20, 4096
_COOKIE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+=[ -:<-~]*")  # https://www.rfc-editor.org/rfc/rfc6265#section-4.1.1


class CookieJar:
    """Cookies of one fetch.

    A cookie is sent to the very host that set it, never to its subdomains or its parents.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, str], tuple[str, bool]] = {}  # host, path, name: pair, whether it is secure

    def add(self, url: str, fields: list[str]) -> None:
        """Keep the cookies of a response's Set-Cookie fields."""
        parts = urlsplit(url)
        for text in fields:
            pair, *attributes = (part.strip() for part in text.split(";"))
            if len(text) <= _MAX_LENGTH and _COOKIE.fullmatch(pair):
                self._set(parts, pair, dict(_attribute(part) for part in attributes))

    def header(self, url: str) -> str:
        """Return the Cookie header of a request, empty for none."""
        if not self._kept:
            return ""
        parts = urlsplit(url)
        path = parts.path or "/"
        return "; ".join(
            pair
            for (host, folder, _), (pair, is_secure) in self._kept.items()
            if host == parts.hostname and (parts.scheme == "https" or not is_secure) and _is_below(path, folder)
        )

    def _set(self, parts: SplitResult, pair: str, attributes: dict[str, str]) -> None:
        host, is_secure = parts.hostname or "", "secure" in attributes
        if not _is_of_host(attributes, host) or (is_secure and parts.scheme != "https"):
            return
        path = attributes.get("path", "")
        if not path.startswith("/"):
            path = (parts.path or "/").rpartition("/")[0] or "/"
        key = (host, path, pair.partition("=")[0])
        self._kept.pop(key, None)
        if not _has_expired(attributes) and len(self._kept) < _MAX_COOKIES:
            self._kept[key] = pair, is_secure


def _attribute(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip().lower(), value.strip()


def _is_of_host(attributes: dict[str, str], host: str) -> bool:
    domain = attributes.get("domain", "").removeprefix(".").lower()
    return not domain or host == domain or host.endswith(f".{domain}")


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder if folder.endswith("/") else f"{folder}/")


def _has_expired(attributes: dict[str, str]) -> bool:
    age = attributes.get("max-age")
    if age is not None:
        return age.startswith("-") or not age.strip("0")
    try:
        until = email.utils.parsedate_tz(attributes.get("expires", ""))
        return until is not None and email.utils.mktime_tz(until) <= time.time()
    except (TypeError, ValueError, OverflowError):  # not a date
        return False
